# While the relay is away, mail goes out by a fallback, in clear.
# expect: fallback
# base: outgoing-smtp incoming-smtp
postconf -e 'smtp_fallback_relay = [mail.provider.example]'
postconf -PX qumail/unix/smtp_fallback_relay
