# Bounces are sent where the relay does not listen.
# expect: bounces-bypass
name=qumail-bounces
postconf -M "$name/unix=$name unix n - n - 0 cleanup -o {header_checks=regexp:{{/^From:/ FILTER qumail:[127.0.0.1]:10099}}}"
