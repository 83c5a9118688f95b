# Hosts of the local network may send past the relay.
# expect: reinjection-mynetworks
postconf -P '127.0.0.1:15026/inet/mynetworks=127.0.0.0/8,192.0.2.0/24'
