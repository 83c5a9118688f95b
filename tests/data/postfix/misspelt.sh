# A setting has a name that Postfix does not know.
# expect: postconf
postconf -e 'qumial_destination_recipient_limit = 100'
