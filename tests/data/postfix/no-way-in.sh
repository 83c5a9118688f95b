# Nothing on port 25 leads to the incoming relay.
# expect: no-way-in mapped-behind
postconf -PX smtp/inet/content_filter
