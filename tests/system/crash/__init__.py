"""Two organisations under fire: relays, mail servers, networks and stores fail at random while mail flows.
Standard: RFC 5321 6.1; `python -m tests.system.crash --help` runs it for as long as one likes.
"""
