# Mailboxes keep nothing: what was opened is lost.
# expect: unjudged
postconf -e home_mailbox=../../../dev/null
