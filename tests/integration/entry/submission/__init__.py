"""The submission server as mail programs meet it: TLS, logins, sender addresses, limits, and what they send.
Standard: RFC 6409, RFC 8314, RFC 3207, RFC 4954.
"""
