# What users submit is not sealed, what comes in by port 25 is.
# expect: bypass
postconf -P submission/inet/content_filter=
