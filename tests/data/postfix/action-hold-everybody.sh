# The mail of everybody who submits is put on hold.
# expect: action-stops
postconf -P 'submission/inet/smtpd_sender_restrictions=check_sender_access,static:HOLD'
