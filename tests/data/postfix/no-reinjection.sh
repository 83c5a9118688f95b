# The service that takes sealed mail back is missing.
# expect: no-reinjection
postconf -MX 127.0.0.1:15026/inet
