# Postfix takes a peer's domain for its own.
# expect: peer-is-local
postconf -e virtual_alias_domains=bob.example
