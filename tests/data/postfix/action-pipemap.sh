# A table made of tables has an action.
# expect: action-bypass
postconf -e 'header_checks = pipemap:{static:{FILTER smtp:[127.0.0.1]:2525}}'
