# Large mails of peers are refused, since sealing has made them larger.
# expect: size-sealed-refused
postconf -P smtp/inet/message_size_limit=60000000
