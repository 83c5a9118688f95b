# Refusals became deferrals for a test, and stayed so.
# expect: soft-bounce
postconf -e 'soft_bounce = yes'
