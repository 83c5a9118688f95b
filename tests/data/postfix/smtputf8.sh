# Postfix takes mail in SMTPUTF8 but not back from the relay.
# expect: smtputf8-refused
postconf -P '127.0.0.1:15026/inet/smtputf8_enable=no'
