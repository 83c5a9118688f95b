# One of the tables that a table is made of has an action.
# expect: action-bypass
echo "/^Subject:/ FILTER smtp:[127.0.0.1]:2525" > checks
postconf -e "header_checks = unionmap:{regexp:{{/^To:/ INFO}}, regexp:$PWD/checks}"
