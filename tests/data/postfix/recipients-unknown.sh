# Everybody at a domain is taken to exist.
# expect: unknown-recipients
postconf -e 'relay_domains = alice.example'
