# What the relay hands back sealed goes to the relay again.
# expect: loop
postconf -PX 127.0.0.1:15026/inet/content_filter
