# A header check adds a recipient of whom the milter does not hear.
# expect: action-bypass
# base: milter
postconf -e 'header_checks = regexp:{{/^Subject:/ BCC archive@bob.example}}'
