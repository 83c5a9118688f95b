# smtpd gives up before the relay may answer.
# expect: impatient
# base: outgoing-lmtp incoming-lmtp outgoing-proxy
postconf -PX submission/inet/smtpd_proxy_timeout
