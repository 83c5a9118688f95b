# What goes to the relay loses its text on the way.
# expect: sealed-changed
echo '/./ IGNORE' > checks
postconf -P "qumail/unix/lmtp_body_checks=regexp:$PWD/checks"
