# Bounces do not pass the relay's milter.
# expect: bounces-bypass
# base: milter
postconf -e internal_mail_filter_classes=
