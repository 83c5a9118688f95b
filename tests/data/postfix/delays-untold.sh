# Nobody is told that their mail waits.
# expect: delays-untold
postconf -e delay_warning_time=0
