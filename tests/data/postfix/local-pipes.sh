# Mailboxes get nothing.
# expect: transport-lost
postconf -M 'local/unix=local unix - n n - - pipe user=nobody argv=/bin/true'
