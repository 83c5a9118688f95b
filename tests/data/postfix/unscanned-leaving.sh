# The scanner is asked when the relay has sealed the mail.
# expect: leaving-unscanned
# base: milter
postconf -e 'smtpd_milters = inet:127.0.0.1:15038, inet:127.0.0.1:15028, inet:localhost:11332'
postconf -P '127.0.0.1:15036/inet/smtpd_milters=inet:127.0.0.1:15028,inet:localhost:11332'
