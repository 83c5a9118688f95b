# smtpd_proxy_filter names a port where the relay does not listen.
# expect: filter-elsewhere left-over
# base: outgoing-lmtp incoming-lmtp outgoing-proxy
# relay: ^\[incoming\]\n(.+\n)+ -> 
postconf -X content_filter
postconf -P 'submission/inet/smtpd_proxy_filter=127.0.0.1:10099'
