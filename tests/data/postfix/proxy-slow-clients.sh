# Slow clients hold connections of the relay.
# expect: proxy-slow-clients
# base: outgoing-lmtp incoming-lmtp outgoing-proxy
postconf -PX submission/inet/smtpd_proxy_options
