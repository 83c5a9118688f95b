# A table answers by chance, with an action at times.
# expect: action-bypass
postconf -e 'header_checks = randmap:{INFO, {FILTER smtp:[127.0.0.1]:2525}}'
