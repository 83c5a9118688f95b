# The service for the relay speaks SMTP to its LMTP listener: all mail is bounced.
# expect: lines-folded no-xforward wrong-protocol
fields=$(postconf -M qumail/unix)
postconf -M "qumail/unix=$(echo "$fields" | sed 's/ lmtp/ smtp/')"
