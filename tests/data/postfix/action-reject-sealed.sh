# A rule about attachments refuses every sealed mail.
# expect: action-stops
echo '/name=.*\.(exe|p7m)/ REJECT' > checks
postconf -e "mime_header_checks = regexp:$PWD/checks"
