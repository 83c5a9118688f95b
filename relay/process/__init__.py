"""Runs a relay: assembly, serving, reloading, upkeep, shutdown.
Standard: relay/process/app.py is one process; workers.py runs several.
"""
