# The service that takes opened mail back has milters of its own, and the scanner is none of them.
# expect: opened-unscanned
postconf -e smtpd_milters=inet:localhost:11332
postconf -P 127.0.0.1:15036/inet/smtpd_milters=inet:localhost:8893
