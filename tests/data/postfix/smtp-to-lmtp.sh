# The SMTP client is sent to the relay's LMTP port.
# expect: wrong-protocol
# base: outgoing-smtp incoming-smtp
postconf -e 'content_filter = qumail:[127.0.0.1]:15024'
