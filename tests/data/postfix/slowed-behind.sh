# Each server gets one mail in an hour.
# expect: slowed
postconf -e default_destination_rate_delay=1h
postconf -e qumail_destination_rate_delay=0
