"""How a relay runs: it is put together, serves, takes up what has changed, keeps its store tidy, and stops.
Standard: relay/process/app.py is one process; workers.py runs several.
"""
