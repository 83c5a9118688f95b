# Postfix completes the header of what was opened, and signatures break.
# expect: rewritten
postconf -PX 127.0.0.1:15036/inet/local_header_rewrite_clients
