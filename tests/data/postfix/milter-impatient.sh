# Postfix gives up before the relay may answer.
# expect: impatient
# base: milter
# relay: ^next_hop = "127.0.0.1:15036" -> next_hop = "127.0.0.1:15026"
postconf -e milter_content_timeout=30s
