# The same for what aliases run alone.
# expect: bypass
postconf -P local/unix/export_environment=MAIL_CONFIG=/etc/postfix-alt
