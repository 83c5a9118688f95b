# amavisd reads what is submitted, and the relay seals what it hands back; opened mail goes past it.
# expect: opened-unscanned
postconf -M '127.0.0.1:10025/inet=127.0.0.1:10025 inet n - n - - smtpd -o content_filter=qumail:[127.0.0.1]:15024'
postconf -P 'submission/inet/content_filter=smtp:[127.0.0.1]:10024'
