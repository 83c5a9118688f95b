# Recipients and headers are checked again behind the relay.
# expect: checked-again
postconf -P '127.0.0.1:15026/inet/receive_override_options=no_address_mappings,no_milters'
