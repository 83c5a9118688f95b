# Mail that came in is too large for the port that takes it back opened.
# expect: size-back
postconf -P 127.0.0.1:15036/inet/message_size_limit=60000000
