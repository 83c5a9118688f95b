# What users submit is shown to no milter.
# expect: bypass
# base: milter
postconf -P submission/inet/smtpd_milters=
