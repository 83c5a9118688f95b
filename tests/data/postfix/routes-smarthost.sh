# A smarthost that follows routes.
# expect: routes
# base: smarthost
# relay: ^\[incoming\]\n(.+\n)+ ->
# relay: ^next_hop = .* -> next_hop = "mail.alice.example:25"
postconf -X allow_percent_hack
