# master.cf has lost a service that all mail needs.
# expect: service-disabled
# base: outgoing-lmtp incoming-lmtp
postconf -MX cleanup/unix
