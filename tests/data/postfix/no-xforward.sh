# The relay's log names 127.0.0.1 for every mail.
# expect: no-xforward
postconf -PX qumail/unix/lmtp_send_xforward_command
