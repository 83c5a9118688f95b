# What is signed is not what leaves.
# expect: dkim-before-filter
postconf -e 'smtpd_milters = unix:/run/opendkim/opendkim.sock'
postconf -P 'smtp/inet/smtpd_milters='
