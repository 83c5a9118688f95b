# A canonical map renames somebody to another site, behind the milter.
# expect: aliases-bypass
# base: milter
postconf -e 'recipient_canonical_maps = inline:{ old@alice.example=eva@elsewhere.example }'
