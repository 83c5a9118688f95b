# The same for mail of programs.
# expect: dkim-before-filter
# relay: ^\[\[dkim.keys\]\]\n(.+\n)+ ->
postconf -e 'non_smtpd_milters = inet:localhost:8891'
