# Postfix takes ben%bob.example@alice.example for a route to bob.example.
# expect: routes
postconf -e allow_percent_hack=yes
