# The table that leads notices through the relay is gone: nobody can say whether it does.
# expect: table-unread
postconf -P "qumail-bounces/unix/header_checks=regexp:$PWD/gone"
