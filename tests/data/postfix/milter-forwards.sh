# A virtual alias forwards to another site; a milter decided about the alias, and that is left in clear.
# expect: aliases-bypass
# base: milter
echo 'sales@alice.example eva@elsewhere.example, ann@alice.example' > virtual
postconf -e "virtual_alias_maps = texthash:$PWD/virtual"
