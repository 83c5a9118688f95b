# The milters of a former integration stay, and nobody listens there.
# expect: left-over
# relay: ^listen = "127.0.0.1:15025"\n -> 
# relay: ^milter = "127.0.0.1:15028"\n -> 
# relay: ^milter = "127.0.0.1:15038"\n -> 
postconf -e 'smtpd_milters = inet:127.0.0.1:15038, inet:127.0.0.1:15028'
postconf -P 127.0.0.1:15036/inet/smtpd_milters=
