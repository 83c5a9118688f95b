"""The SMTP listener: SMTP and LMTP for both directions, and the submission server for users.
Standard: RFC 5321, RFC 2033 (LMTP), RFC 6409 (submission); session.py and submission.py have the details.
"""
