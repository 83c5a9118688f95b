# What a pipe or an alias runs sends by another Postfix.
# expect: bypass
postconf -e 'export_environment = TZ { MAIL_CONFIG = /etc/postfix-alt } LANG'
