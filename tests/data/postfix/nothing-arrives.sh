# Mail for this site's own mailboxes is returned.
# expect: transports-deferred
postconf -e mydestination=alice.example local_recipient_maps=static:x 'local_transport=error:none here'
