# One mail in ten minutes goes to the relay.
# expect: slowed
postconf -e qumail_transport_rate_delay=10m
