"""DKIM and ARC: what we sign, and what we say of what others have signed.
Standard: RFC 6376, RFC 8463, RFC 8601, RFC 8617; the DNS is a real server on loopback.
"""
