# An access table names another filter.
# expect: action-bypass
echo "ann@alice.example FILTER smtp:[mail.elsewhere.example]" > access
postconf -P "submission/inet/smtpd_sender_restrictions=check_sender_access,texthash:$PWD/access"
