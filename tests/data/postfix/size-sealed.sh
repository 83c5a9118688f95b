# Sealing makes large mails too large for the port that takes them back.
# expect: size-back
postconf -P 127.0.0.1:15026/inet/message_size_limit=60000000
