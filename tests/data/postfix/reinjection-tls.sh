# TLS is required of everybody, and so of the relay.
# expect: reinjection-needs-tls
postconf -e smtpd_tls_security_level=encrypt
postconf -PX 127.0.0.1:15026/inet/smtpd_tls_security_level
