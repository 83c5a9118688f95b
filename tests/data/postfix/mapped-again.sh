# Aliases are expanded in front of the relay and behind it.
# expect: mapped-again
postconf -P '127.0.0.1:15026/inet/receive_override_options=no_unknown_recipient_checks,no_header_body_checks,no_milters'
