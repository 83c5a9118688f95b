# The default for all transports is small, and the filter has none of its own.
# expect: few-recipients
postconf -X qumail_destination_recipient_limit
postconf -e 'default_destination_recipient_limit = 2'
