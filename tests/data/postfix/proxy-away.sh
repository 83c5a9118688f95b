# What users submit is handed to a mail server elsewhere before it is queued.
# expect: bypass
postconf -P submission/inet/smtpd_proxy_filter=192.0.2.1:25
