# Mail of programs, and bounces, do not pass the relay's milter.
# expect: bypass bounces-bypass
# base: milter
# relay: ^next_hop = "127.0.0.1:10036" -> next_hop = "127.0.0.1:10026"
postconf -e non_smtpd_milters=
