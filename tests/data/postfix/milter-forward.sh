# The same behind a milter.
# expect: forward-bypass
# base: milter
# relay: ^next_hop = "127.0.0.1:15036" -> next_hop = "127.0.0.1:15026"
postconf -e 'forward_path = $home/.forward'
