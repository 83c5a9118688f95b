# What comes in by port 25 and goes on to another site is not sealed.
# expect: bypass
postconf -P 127.0.0.1:15036/inet/content_filter=
