# A sealed mail for an alias reaches the relay for those behind it, whom its sender did not name.
# expect: mapped-in-front
postconf -PX smtp/inet/receive_override_options
