# The scanner is asked before the relay has opened the mail.
# expect: opened-unscanned
# base: milter
postconf -e 'smtpd_milters = inet:localhost:11332, inet:127.0.0.1:15038, inet:127.0.0.1:15028'
postconf -P '127.0.0.1:15036/inet/smtpd_milters=inet:localhost:11332,inet:127.0.0.1:15028'
