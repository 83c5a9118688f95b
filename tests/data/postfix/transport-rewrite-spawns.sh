# No address is resolved: all mail waits in the queue.
# expect: transport-lost
postconf -M 'rewrite/unix=rewrite unix - n n - - spawn user=nobody argv=/bin/true'
