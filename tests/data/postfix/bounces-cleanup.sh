# Bounces quote mail and leave in clear.
# expect: bounces-bypass
postconf -PX bounce/unix/cleanup_service_name
