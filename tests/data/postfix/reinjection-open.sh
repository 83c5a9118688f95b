# The port for sealed mail is open on every interface.
# expect: reinjection-open
postconf -X inet_interfaces
postconf -F 127.0.0.1:10026/inet/service=10026
