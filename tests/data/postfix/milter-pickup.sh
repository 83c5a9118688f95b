# Mail of programs, and bounces, do not pass the relay's milter.
# expect: bypass bounces-bypass
# base: milter
postconf -e non_smtpd_milters=
