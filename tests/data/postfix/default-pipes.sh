# Mail to other servers is given to a program.
# expect: transport-lost
postconf -M 'away/unix=away unix - n n - - pipe user=nobody argv=/bin/true'
postconf -P rewrite/unix/default_transport=away:
