# Without the relay's answer mail is refused for good.
# expect: milter-refuses
# base: milter
postconf -e milter_default_action=reject
