# Aliases work neither in front of the incoming relay nor behind it.
# expect: not-mapped
postconf -P '127.0.0.1:15036/inet/receive_override_options=no_unknown_recipient_checks,no_header_body_checks,no_address_mappings,no_milters'
