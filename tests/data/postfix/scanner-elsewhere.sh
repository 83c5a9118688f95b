# A content filter of one service is no scanner, but a mail server elsewhere.
# expect: bypass opened-unscanned
postconf -M '127.0.0.1:10025/inet=127.0.0.1:10025 inet n - n - - smtpd -o content_filter=qumail:[127.0.0.1]:15024'
postconf -P 'submission/inet/content_filter=smtp:[192.0.2.1]:25'
