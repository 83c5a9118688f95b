# Mail for a peer goes where a table says, which no rule reads.
# expect: unjudged
postconf -e 'transport_maps = inline:{bob.example=discard:}'
