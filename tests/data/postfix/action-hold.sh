# All mail is put on hold, as before a maintenance.
# expect: action-stops
postconf -e 'header_checks = regexp:{{/^Received:/ HOLD}}'
