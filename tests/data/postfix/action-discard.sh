# A rule about subjects throws every sealed mail away.
# expect: action-discards
echo '/^Subject: .\.\.\..$/ DISCARD' > checks
postconf -e "header_checks = regexp:$PWD/checks"
