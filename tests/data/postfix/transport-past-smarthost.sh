# A partner's mail goes to their server, past the smarthost that seals it.
# expect: bypass
# base: smarthost
# relay: ^\[incoming\]\n(.+\n)+ -> 
# relay: ^next_hop = .* -> next_hop = "mail.alice.example:25"
postconf -e 'transport_maps = inline:{ alice.example=:[mailboxes.alice.example], partner.example=smtp:[mail.partner.example] }'
