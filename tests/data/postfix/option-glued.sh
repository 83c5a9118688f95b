# Postfix takes the filter out by an option without a blank, which postconf reads as two others.
# expect: bypass postconf
sed -i 's/^pickup .*/pickup unix n - n 60 1 pickup -ocontent_filter=/' etc/master.cf
