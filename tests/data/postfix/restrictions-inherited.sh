# Restrictions for clients from outside are asked for what comes back.
# expect: reinjection-restrictions
postconf -e 'smtpd_recipient_restrictions = reject_rbl_client zen.example, permit_mynetworks, reject'
postconf -PX 127.0.0.1:15036/inet/smtpd_recipient_restrictions
