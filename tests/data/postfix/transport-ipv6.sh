# The service that hands mail to 127.0.0.1 speaks IPv6 alone: mail and its bounce are lost.
# expect: transport-lost
# base: outgoing-lmtp incoming-lmtp
postconf -P qumail/unix/inet_protocols=ipv6
