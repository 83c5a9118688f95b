# An alias includes a file that names another site.
# expect: aliases-bypass
printf "%s\n" "# the team" ann eva@elsewhere.example > team
echo "team: :include:$PWD/team" > aliases
postconf -e "alias_maps = texthash:$PWD/aliases"
