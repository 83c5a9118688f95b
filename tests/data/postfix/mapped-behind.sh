# Aliases are expanded behind the relay only, as FILTER_README has it.
# expect: mapped-behind
postconf -P 'submission/inet/receive_override_options=no_address_mappings'
postconf -P '127.0.0.1:15026/inet/receive_override_options=no_unknown_recipient_checks,no_header_body_checks,no_milters'
