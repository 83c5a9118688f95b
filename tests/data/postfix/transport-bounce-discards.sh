# No bounce is written: senders never hear of mail that was not delivered.
# expect: bounces-bypass transport-lost
postconf -M 'bounce/unix=bounce unix - - n - 0 discard'
