# What the relay hands back opened goes to the incoming relay again.
# expect: loop
postconf -P '127.0.0.1:15036/inet/content_filter=qumail:[127.0.0.1]:15034'
