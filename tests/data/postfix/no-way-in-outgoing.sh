# Nothing leads to the outgoing relay: all mail leaves in clear.
# expect: no-way-in
postconf -X content_filter
