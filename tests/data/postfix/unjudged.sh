# Delivery agents take their senders from a table that no rule reads.
# expect: unjudged
postconf -e 'smtp_generic_maps = inline:{ann@alice.example=eve@else.example}'
