# Without the relay's answer mail goes on in clear.
# expect: milter-lets-pass
# base: milter
# relay: ^next_hop = "127.0.0.1:15036" -> next_hop = "127.0.0.1:15026"
postconf -e milter_default_action=accept
