# Behind the relay each line of sealed mail is taken out.
# expect: sealed-changed
postconf -e 'smtp_body_checks = regexp:{{/./ IGNORE}}'
