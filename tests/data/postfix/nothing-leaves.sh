# Mail to other sites is kept by retry(8).
# expect: transports-deferred
postconf -e default_transport=retry:later
