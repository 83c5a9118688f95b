# The relay itself is not among those that may send.
# expect: reinjection-mynetworks
postconf -P '127.0.0.1:15026/inet/mynetworks=192.0.2.0/24'
