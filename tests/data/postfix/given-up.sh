# What the relay holds is returned at once.
# expect: given-up
postconf -e maximal_queue_lifetime=0
