"""Mail that cannot be opened: kept, looked at, released, dropped.
Standard: at the boundary an administrator sees, SMTP and the command line, with real relays and KMEs.
"""
