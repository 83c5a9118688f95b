# content_filter names a port where the relay does not listen.
# expect: left-over no-way-in
# base: outgoing-lmtp
# relay: ^\[incoming\]\n(.+\n)+ -> 
postconf -e 'content_filter = qumail:[127.0.0.1]:10099'
