# What the relay hands back is given to its milters again.
# expect: loop
# base: milter
postconf -PX 127.0.0.1:15026/inet/smtpd_milters
postconf -P 127.0.0.1:15026/inet/receive_override_options=no_unknown_recipient_checks,no_header_body_checks
