# What the relay holds is tried again in ten days.
# expect: slowed
postconf -e queue_run_delay=10d
