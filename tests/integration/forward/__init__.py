"""What the relay makes of every behaviour of its next hops.
Standard: a mail is either accepted, refused or held, for each recipient, and never handed to two servers.
"""
