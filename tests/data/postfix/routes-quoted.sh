# Postfix takes "ben@bob.example"@alice.example for a route to bob.example, as the rewriting service says.
# expect: routes
postconf -P rewrite/unix/resolve_dequoted_address=yes
