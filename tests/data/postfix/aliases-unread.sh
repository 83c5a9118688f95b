# The index of an alias table was never made.
# expect: table-unread
postconf -e "alias_maps = hash:$PWD/aliases"
