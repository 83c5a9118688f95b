# DSN is hidden from all clients, and so from the relay: bounces quote what was opened.
# expect: keywords-hidden
postconf -e 'smtpd_discard_ehlo_keywords = chunking, dsn'
postconf -PX 127.0.0.1:15036/inet/smtpd_discard_ehlo_keywords
