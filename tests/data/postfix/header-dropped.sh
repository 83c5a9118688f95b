# A field that says that mail is sealed is left out.
# expect: sealed-changed
postconf -e 'message_drop_headers = bcc, Content-Type'
