# A canonical map renames somebody to another site, behind the milter.
# expect: aliases-bypass
# base: milter
# relay: ^next_hop = "127.0.0.1:15036" -> next_hop = "127.0.0.1:15026"
postconf -e 'recipient_canonical_maps = inline:{ old@alice.example=eva@elsewhere.example }'
