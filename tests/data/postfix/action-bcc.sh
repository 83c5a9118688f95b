# A header check adds a recipient of whom the milter does not hear.
# expect: action-bypass
# base: milter
# relay: ^next_hop = "127.0.0.1:15036" -> next_hop = "127.0.0.1:15026"
postconf -e 'header_checks = regexp:{{/^Subject:/ BCC archive@bob.example}}'
