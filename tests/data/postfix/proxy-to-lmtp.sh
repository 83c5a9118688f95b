# smtpd_proxy_filter names the relay's LMTP port.
# expect: wrong-protocol
# base: outgoing-lmtp incoming-lmtp outgoing-proxy
postconf -P 'submission/inet/smtpd_proxy_filter=127.0.0.1:15024'
