# Without the relay's answer mail goes on in clear.
# expect: milter-lets-pass
# base: milter
postconf -e milter_default_action=accept
