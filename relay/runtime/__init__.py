"""What Python and the operating system give to a running process: event loop, signals, memory, systemd.
Standard: nothing here knows of mail.
"""
