# The same for what the relay hands back only.
# expect: soft-bounce
postconf -P 127.0.0.1:15026/inet/soft_bounce=yes
