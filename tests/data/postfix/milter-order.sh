# The milter that signs stands in front of the relay's.
# expect: dkim-before-filter
# relay: ^\[\[dkim.keys\]\]\n(.+\n)+ ->
# base: milter
postconf -e 'smtpd_milters = inet:127.0.0.1:15038, unix:opendkim/opendkim.sock, inet:127.0.0.1:15028'
