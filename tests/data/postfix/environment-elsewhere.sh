# Every process of Postfix reads another directory, which knows of no relay.
# expect: bypass
postconf -e 'import_environment = MAIL_CONFIG=/etc/postfix-alt TZ LANG=C'
