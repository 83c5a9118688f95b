# content_filter names a service that master.cf does not have.
# expect: unknown-transport
postconf -e 'content_filter = qmail:[127.0.0.1]:15024'
