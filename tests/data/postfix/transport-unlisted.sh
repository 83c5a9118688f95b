# Where mail goes is asked of a server, whose answers nobody can list.
# expect: table-unread
postconf -e 'transport_maps = proxy:tcp:127.0.0.1:2526'
