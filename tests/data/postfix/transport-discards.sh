# The service that leads to the relay throws mail away, and reports it as sent.
# expect: postconf transport-lost
postconf -M 'qumail/unix=qumail unix - - n - - discard'
