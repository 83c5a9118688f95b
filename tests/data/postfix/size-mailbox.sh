# A mailbox may be smaller than a mail, so that local(8) delivers nothing.
# expect: size-mailbox
postconf -e 'mailbox_size_limit = 51200000'
