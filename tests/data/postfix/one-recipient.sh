# Each recipient costs a key of his own.
# expect: few-recipients
postconf -e 'qumail_destination_recipient_limit = 1'
