# One slow mail stops every other.
# expect: one-at-a-time
postconf -e 'qumail_destination_concurrency_limit = 1'
