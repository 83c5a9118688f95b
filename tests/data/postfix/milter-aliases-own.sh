# The service that takes mail in has aliases of its own, of which the milter does not hear.
# expect: aliases-bypass
# base: milter
echo 'sales@alice.example eva@elsewhere.example' > virtual
postconf -P "cleanup/unix/virtual_alias_maps=texthash:$PWD/virtual"
