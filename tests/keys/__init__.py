"""Tests of relay/keys: each file names what it is about, each test what happens.
Standard: real TLS on localhost at free ports; time, where it matters, is simulated.
"""
