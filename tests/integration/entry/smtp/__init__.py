"""The SMTP and LMTP entry as mail servers see it: dialogue, limits, memory, clients that leave, stopping.
Standard: RFC 5321 and RFC 2033; what an entry says of a mail is what its recipe has said, or 4xx.
"""
