# Bounces do not pass the relay's milter.
# expect: bounces-bypass
# base: milter
# relay: ^next_hop = "127.0.0.1:10036" -> next_hop = "127.0.0.1:10026"
postconf -e internal_mail_filter_classes=
