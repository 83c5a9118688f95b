# Users cannot send.
# expect: action-stops
postconf -P submission/inet/smtpd_sender_restrictions=reject
