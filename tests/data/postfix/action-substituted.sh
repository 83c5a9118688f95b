# A header says where the mail goes.
# expect: action-bypass
postconf -e 'header_checks = regexp:{{/^X-Way: (.*)/ FILTER $$1}}'
