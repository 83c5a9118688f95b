# What users submit is handed to the port at which sealed mail comes back.
# expect: bypass
postconf -P submission/inet/smtpd_proxy_filter=127.0.0.1:15026
