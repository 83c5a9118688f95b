# Long lines are cut into several: a header ends where a field is cut.
# expect: sealed-changed
postconf -e line_length_limit=600
