# Recipients are not looked up before mail is taken.
# expect: unknown-recipients
postconf -e smtpd_reject_unlisted_recipient=no
