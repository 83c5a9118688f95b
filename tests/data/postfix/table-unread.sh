# A table that cannot be read may lead mail anywhere.
# expect: table-unread
postconf -e "header_checks = regexp:$PWD/header_checks"
