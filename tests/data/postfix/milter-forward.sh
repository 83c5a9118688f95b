# The same behind a milter.
# expect: forward-bypass
# base: milter
postconf -e 'forward_path = $home/.forward'
