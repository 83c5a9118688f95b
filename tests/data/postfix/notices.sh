# The postmaster gets copies of bounces.
# expect: notices
postconf -e 'notify_classes = bounce, resource, software'
