# The result of an access table is a restriction class, whose own table leads mail past the relay.
# expect: action-bypass
echo "ann@alice.example viaold" > access
postconf -e smtpd_restriction_classes=viaold
postconf -e "smtpd_sender_restrictions = check_sender_access texthash:$PWD/access"
postconf -e 'viaold = check_recipient_access inline:{ {bob.example = REDIRECT eva@elsewhere.example} }'
