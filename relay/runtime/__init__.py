"""Process-level helpers: event loop, signals, memory, systemd.
Nothing here depends on mail.
"""
