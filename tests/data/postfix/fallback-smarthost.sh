# The same with the relay as smarthost.
# expect: fallback
# base: smarthost
# relay: ^\[incoming\]\n(.+\n)+ -> 
# relay: ^next_hop = .* -> next_hop = "mail.alice.example:25"
postconf -e 'smtp_fallback_relay = [mail.provider.example]'
