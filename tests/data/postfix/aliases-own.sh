# The local service has alias tables of its own.
# expect: aliases-bypass
echo 'sales: eva@elsewhere.example' > aliases
postconf -P "local/unix/alias_maps=texthash:$PWD/aliases"
