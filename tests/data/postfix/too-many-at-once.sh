# Postfix opens more connections than the relay takes.
# expect: too-many-at-once
# relay: ^#trusted = .* -> trusted = ["192.0.2.0/24"]
postconf -e 'qumail_destination_concurrency_limit = 60'
