# Postfix takes more than the incoming relay.
# expect: size-relay-refuses
postconf -P smtp/inet/message_size_limit=90000000
postconf -P 127.0.0.1:15036/inet/message_size_limit=90000000
