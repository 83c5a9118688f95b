# What is signed is not what leaves.
# expect: dkim-before-filter
# relay: ^\[\[dkim.keys\]\]\n(.+\n)+ ->
postconf -e 'smtpd_milters = unix:/run/opendkim/opendkim.sock'
postconf -P 'smtp/inet/smtpd_milters='
