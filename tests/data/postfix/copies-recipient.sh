# Copies of mail for somebody, which the cleanup service of one way in adds.
# expect: copies
# base: milter
echo 'al@alice.example boss@alice.example' > copies
postconf -M 'copying/unix=copying unix n - n - 0 cleanup'
postconf -P "copying/unix/recipient_bcc_maps=texthash:$PWD/copies" submission/inet/cleanup_service_name=copying
