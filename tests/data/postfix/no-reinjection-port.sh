# The relay hands back to another port than the one where Postfix listens.
# expect: no-reinjection
# relay: ^next_hop = "127.0.0.1:15036" -> next_hop = "127.0.0.1:10037"
:
