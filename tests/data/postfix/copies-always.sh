# A copy of every mail, of which the milter does not hear.
# expect: copies
# base: milter
# relay: ^next_hop = "127.0.0.1:15036" -> next_hop = "127.0.0.1:15026"
postconf -e always_bcc=archive@bob.example
