# Behind the relay a filter of commands gives sealed mail to somebody else.
# expect: commands-changed
echo '/^RCPT TO:<ann@.*>/ RCPT TO:<eve@third.example>' > commands
postconf -P "127.0.0.1:15026/inet/smtpd_command_filter=regexp:$PWD/commands"
