# Some clients are shown to no milter.
# expect: bypass
# base: milter
postconf -e 'smtpd_milter_maps = cidr:{{192.0.2.0/24 DISABLE}}'
