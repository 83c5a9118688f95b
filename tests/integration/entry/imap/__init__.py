"""The IMAP watcher against a real Dovecot, and against servers that misbehave.
Standard: what counts is what another IMAP client of the user finds in the mailbox.
"""
