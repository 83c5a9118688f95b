# A table without a file has one action for all mail.
# expect: action-bypass
postconf -e 'smtpd_sender_restrictions = check_sender_access static:{FILTER smtp:[127.0.0.1]:2525}'
