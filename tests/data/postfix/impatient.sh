# The filter's client gives up before the relay may answer.
# expect: impatient
postconf -P qumail/unix/lmtp_data_done_timeout=60s
