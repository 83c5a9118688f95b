# Hardly any mail is small enough.
# expect: size-stops size-back
postconf -e message_size_limit=5000
