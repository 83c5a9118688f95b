# Long header fields are cut, also those that say that mail is sealed.
# expect: sealed-changed
postconf -e header_size_limit=20
