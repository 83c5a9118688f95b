# Virtual aliases that nobody can list, behind a milter.
# expect: aliases-unseen
# base: milter
echo "/^(.*)@old[.]example$/ \$1@elsewhere.example" > virtual
postconf -e "virtual_alias_maps = regexp:$PWD/virtual"
