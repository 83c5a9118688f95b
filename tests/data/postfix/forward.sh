# Users may forward their mail to other sites.
# expect: forward-bypass
postconf -X forward_path
