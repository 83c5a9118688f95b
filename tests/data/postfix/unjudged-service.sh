# A service of its own sends from an address that reaches no other host.
# expect: unjudged
postconf -P smtp/unix/smtp_bind_address=127.0.0.1
