# The relay may not say who the client was.
# expect: xforward-refused
postconf -PX 127.0.0.1:15026/inet/smtpd_authorized_xforward_hosts
