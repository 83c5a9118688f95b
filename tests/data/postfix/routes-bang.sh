# Postfix takes bob.example!ben@alice.example for a route to bob.example.
# expect: routes
postconf -X swap_bangpath
