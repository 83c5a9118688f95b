# A table names a transport that master.cf has no longer.
# expect: transports-deferred
postconf -e 'transport_maps = inline:{bob.example=partners:[192.0.2.2]}'
