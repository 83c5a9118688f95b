# Some senders have another smarthost.
# expect: bypass
# base: smarthost
# relay: ^\[incoming\]\n(.+\n)+ -> 
# relay: ^next_hop = .* -> next_hop = "mail.alice.example:25"
postconf -e 'sender_dependent_relayhost_maps = inline:{ boss@alice.example=[mail.provider.example] }'
