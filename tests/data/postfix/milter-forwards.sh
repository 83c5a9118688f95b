# A virtual alias forwards to another site; a milter decided about the alias, and that is left in clear.
# expect: aliases-bypass
# base: milter
# relay: ^next_hop = "127.0.0.1:15036" -> next_hop = "127.0.0.1:15026"
echo 'sales@alice.example eva@elsewhere.example, ann@alice.example' > virtual
postconf -e "virtual_alias_maps = texthash:$PWD/virtual"
