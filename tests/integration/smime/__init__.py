"""S/MIME with other products in whole relays: a site without a KME, OpenSSL and NSS at the other end.
Standard: RFC 8551; what a user or an outsider sees, over SMTP and through real Postfix.
"""
