# Mail of programs, and bounces, do not pass the relay's milter.
# expect: bypass bounces-bypass
# base: milter
# relay: ^next_hop = "127.0.0.1:15036" -> next_hop = "127.0.0.1:15026"
postconf -e non_smtpd_milters=
