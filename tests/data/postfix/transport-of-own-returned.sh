# Mail for this site is returned, opened mail too.
# expect: transports-deferred
postconf -e 'transport_maps = inline:{{ alice.example = error:5.1.1 closed }}'
