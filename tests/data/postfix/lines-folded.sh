# Long lines are broken before they are sealed.
# expect: lines-folded
postconf -PX qumail/unix/lmtp_line_length_limit
