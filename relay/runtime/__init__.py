"""Process-level helpers: event loop, signals, memory, systemd.
Standard: nothing here depends on mail.
"""
