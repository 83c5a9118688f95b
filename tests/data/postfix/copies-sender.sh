# Copies of somebody's mail, of which the milter does not hear.
# expect: copies
# base: milter
# relay: ^next_hop = "127.0.0.1:15036" -> next_hop = "127.0.0.1:15026"
postconf -e 'sender_bcc_maps = inline:{ ann@alice.example=archive@alice.example }'
