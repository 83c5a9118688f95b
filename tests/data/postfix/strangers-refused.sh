# Only this host's own clients may send.
# expect: action-stops
postconf -e 'smtpd_client_restrictions = permit_mynetworks, reject'
