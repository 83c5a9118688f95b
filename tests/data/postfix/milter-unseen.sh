# Virtual aliases that nobody can list, behind a milter.
# expect: aliases-unseen
# base: milter
# relay: ^next_hop = "127.0.0.1:15036" -> next_hop = "127.0.0.1:15026"
echo "/^(.*)@old[.]example$/ \$1@elsewhere.example" > virtual
postconf -e "virtual_alias_maps = regexp:$PWD/virtual"
