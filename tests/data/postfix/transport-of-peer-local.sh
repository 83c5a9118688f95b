# A table gives a peer's mail to mailboxes here.
# expect: transport-lost
postconf -e 'transport_maps = inline:{bob.example=virtual:}'
