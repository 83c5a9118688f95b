# smtpd_proxy_filter in main.cf: it holds for what comes back as well (and is set as Postfix's defaults are).
# expect: loop proxy-slow-clients impatient filtered-twice mapped-behind
postconf -e smtpd_proxy_filter=127.0.0.1:15025
for port in 15026 15036; do postconf -PX 127.0.0.1:$port/inet/smtpd_proxy_filter; done
