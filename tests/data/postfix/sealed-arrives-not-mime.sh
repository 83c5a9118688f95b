# Before the relay opens it, sealed mail loses what says that it is sealed.
# expect: sealed-changed
postconf -e 'header_checks = regexp:{{/^Content-Type:/ REPLACE X-Content-Type: removed}}'
