# A restriction class names an access table that leads mail past the relay.
# expect: action-bypass
postconf -e smtpd_restriction_classes=viaold smtpd_sender_restrictions=viaold
postconf -e 'viaold = check_recipient_access inline:{ {bob.example = FILTER smtp:[127.0.0.1]:2525} }'
