# Mail that cannot be delivered now is thrown away, and reported as sent.
# expect: transport-lost
postconf -M 'retry/unix=retry unix - - n - - discard'
