# TLS is required to all destinations, and so to the relay.
# expect: filter-needs-tls
postconf -e lmtp_tls_security_level=encrypt
postconf -PX qumail/unix/lmtp_tls_security_level
