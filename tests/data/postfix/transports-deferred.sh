# Mail to other servers waits until somebody flushes the queue.
# expect: transports-deferred
postconf -e defer_transports=smtp
