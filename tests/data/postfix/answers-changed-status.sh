# The relay holds a mail, and Postfix takes that for another answer.
# expect: answers-changed unjudged
# base: outgoing-smtp incoming-smtp
postconf -e 'default_delivery_status_filter = regexp:{{/^4(.*)/ 5$$1}}'
