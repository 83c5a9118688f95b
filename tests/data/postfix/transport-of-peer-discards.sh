# Mail for a peer is thrown away, as somebody did while it was away.
# expect: transport-lost
postconf -e 'transport_maps = inline:{bob.example=discard:}'
