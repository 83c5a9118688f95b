# An alias forwards to another site, behind the relay and in clear.
# expect: aliases-bypass
echo 'sales: eva@elsewhere.example, ann' > aliases
postconf -e "alias_maps = texthash:$PWD/aliases"
