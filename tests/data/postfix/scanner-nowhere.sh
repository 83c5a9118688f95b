# A content filter of one service names no host, so the mail goes to that of its recipients.
# expect: bypass opened-unscanned
postconf -M '127.0.0.1:10025/inet=127.0.0.1:10025 inet n - n - - smtpd -o content_filter=qumail:[127.0.0.1]:15024'
postconf -P 'submission/inet/content_filter=smtp:'
