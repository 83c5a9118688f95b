"""What relay.store promises, held against both back ends.
Standard: the contract in relay/store/__init__.py; PostgreSQL is Debian's, started by the tests themselves.
"""
