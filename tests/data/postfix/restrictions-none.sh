# Nobody is refused at the port for sealed mail.
# expect: reinjection-restrictions
for kind in client recipient relay; do postconf -P "127.0.0.1:15026/inet/smtpd_${kind}_restrictions=permit_mynetworks"; done
