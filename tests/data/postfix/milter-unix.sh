# Nothing leads to a milter on a Unix socket.
# expect: mapped-again no-way-in
# base: milter
# relay: ^milter = "127.0.0.1:15028" -> milter = "unix:/run/qumail-relay/milter.sock"
postconf -e 'smtpd_milters = inet:127.0.0.1:15038' non_smtpd_milters=
