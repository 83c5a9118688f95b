# The scanner sees what arrives sealed, and does not see it opened.
# expect: opened-unscanned
postconf -e smtpd_milters=inet:localhost:11332
postconf -P 127.0.0.1:15036/inet/receive_override_options=no_unknown_recipient_checks,no_header_body_checks,no_milters
