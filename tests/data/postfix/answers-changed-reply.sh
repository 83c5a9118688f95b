# The relay holds a mail, and Postfix takes that for another answer.
# expect: answers-changed
# base: outgoing-lmtp incoming-lmtp
postconf -e 'lmtp_reply_filter = regexp:{{/^4(.*)/ 2$$1}}'
