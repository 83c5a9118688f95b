# A copy of every mail, of which the milter does not hear.
# expect: copies
# base: milter
postconf -e always_bcc=archive@bob.example
