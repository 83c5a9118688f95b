# The local service has a luser_relay of its own, at another site.
# expect: aliases-bypass
postconf -P local/unix/luser_relay=ben@elsewhere.example
