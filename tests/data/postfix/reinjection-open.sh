# The port for sealed mail is open on every interface.
# expect: reinjection-open
postconf -X inet_interfaces
postconf -F 127.0.0.1:15026/inet/service=15026
