# Nobody listens where the relay hands mail back.
# expect: service-disabled
postconf -e master_service_disable=127.0.0.1:15026/inet
