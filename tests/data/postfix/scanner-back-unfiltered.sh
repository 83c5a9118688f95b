# What a scanner hands back goes on without a filter.
# expect: bypass opened-unscanned
postconf -M '127.0.0.1:10025/inet=127.0.0.1:10025 inet n - n - - smtpd -o content_filter='
postconf -P 'submission/inet/content_filter=smtp:[127.0.0.1]:10024'
