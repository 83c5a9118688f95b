# Submitted mail goes through the relay before the queue and after it.
# expect: filtered-twice
# base: outgoing-lmtp incoming-lmtp outgoing-proxy
postconf -PX submission/inet/content_filter
