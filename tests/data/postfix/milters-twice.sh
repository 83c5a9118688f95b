# A milter sees each mail twice.
# expect: milters-twice
postconf -e 'smtpd_milters = inet:localhost:8894'
postconf -P 'smtp/inet/smtpd_milters='
postconf -P '127.0.0.1:15026/inet/receive_override_options=no_unknown_recipient_checks,no_header_body_checks,no_address_mappings'
