# A table keeps everybody's mail, while the line is repaired.
# expect: transports-deferred
postconf -e 'transport_maps = inline:{ alice.example=local: } regexp:{{/./ retry:later}}'
