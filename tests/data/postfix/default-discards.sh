# Mail to other servers is thrown away, as on a copy of a server that is for trying out.
# expect: transport-lost
postconf -e default_transport=discard:
