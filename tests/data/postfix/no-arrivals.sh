# Postfix listens on loopback alone.
# expect: no-arrivals
postconf -e inet_interfaces=loopback-only proxy_interfaces=
