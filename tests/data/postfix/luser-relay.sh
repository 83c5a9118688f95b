# Mail for unknown users goes to another site, behind the relay.
# expect: aliases-bypass
postconf -e 'luser_relay = $user@elsewhere.example'
