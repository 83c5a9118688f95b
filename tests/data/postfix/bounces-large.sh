# Bounces quote the mail that they are about.
# expect: bounces-large
postconf -X bounce_size_limit
