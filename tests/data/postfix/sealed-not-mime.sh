# Behind the relay sealed mail loses what says that it is sealed.
# expect: sealed-changed
echo '/^Content-/ IGNORE' > checks
postconf -P "smtp/unix/smtp_mime_header_checks=regexp:$PWD/checks"
