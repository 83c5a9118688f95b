# Aliases do not work for copies.
# expect: not-mapped
# base: milter
postconf -P '127.0.0.1:15026/inet/receive_override_options=no_unknown_recipient_checks,no_header_body_checks,no_address_mappings,no_milters'
