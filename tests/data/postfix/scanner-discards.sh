# The service that should hand mail to a scanner throws it away.
# expect: bypass opened-unscanned transport-lost
postconf -M '127.0.0.1:10025/inet=127.0.0.1:10025 inet n - n - - smtpd -o content_filter=qumail:[127.0.0.1]:15024'
postconf -M 'scan/unix=scan unix - - n - - discard'
postconf -P 'submission/inet/content_filter=scan:[127.0.0.1]:10024'
