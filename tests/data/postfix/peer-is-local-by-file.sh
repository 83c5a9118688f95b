# Postfix takes a peer's domain for its own, which stands in a file.
# expect: peer-is-local
printf '# ours\nold.example\nBob.Example\n' >"$PWD/domains"
postconf -e "virtual_alias_domains = $PWD/domains"
