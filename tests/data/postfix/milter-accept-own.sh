# The same, written beside the milter.
# expect: milter-lets-pass
# base: milter
postconf -e 'smtpd_milters = { inet:127.0.0.1:15038, default_action=accept }, inet:127.0.0.1:15028'
