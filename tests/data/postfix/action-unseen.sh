# What a table answers cannot be listed, so nobody knows where it leads.
# expect: table-unread
postconf -e 'smtpd_sender_restrictions = check_sender_access socketmap:inet:127.0.0.1:2525:access'
