# Postfix gives up before the relay may answer.
# expect: impatient
# base: milter
postconf -e milter_content_timeout=30s
