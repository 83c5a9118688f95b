# localhost has addresses of both kinds: a service that speaks IPv6 alone may reach the relay.
# expect: 
# base: outgoing-lmtp incoming-lmtp
postconf -e 'content_filter = qumail:[localhost]:15024'
postconf -P qumail/unix/inet_protocols=ipv6
postconf -P 'smtp/inet/content_filter=qumail:[localhost]:15034'
