# A table that is meant for a few addresses has an answer for each.
# expect: mapped-everybody
postconf -e 'recipient_canonical_maps = regexp:{{/^/ boss@alice.example}}'
