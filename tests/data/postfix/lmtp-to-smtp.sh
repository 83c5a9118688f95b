# The LMTP client is sent to the relay's SMTP port.
# expect: wrong-protocol
postconf -e 'content_filter = qumail:[127.0.0.1]:15025'
