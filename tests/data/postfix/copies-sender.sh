# Copies of somebody's mail, of which the milter does not hear.
# expect: copies
# base: milter
postconf -e 'sender_bcc_maps = inline:{ ann@alice.example=archive@alice.example }'
