# expect: canary-refused
# Peers tell this site at that address that mail in its name comes unsealed; nobody takes it.
postconf -e 'mydestination = alice.example' 'local_recipient_maps = inline:{ann=ann}'
