# The same, written beside the milter.
# expect: milter-lets-pass
# base: milter
# relay: ^next_hop = "127.0.0.1:15036" -> next_hop = "127.0.0.1:15026"
postconf -e 'smtpd_milters = { inet:127.0.0.1:15038, default_action=accept }, inet:127.0.0.1:15028'
