"""Compares two sets of policies pointwise: kind of recipient by kind, and for each rule the mails that it fits.
Standard: policies/README.md; what is not shown to be as strong as before counts as weaker.

From a set down to one condition::

    pointwise.py     kinds of recipients, day by day, and each rule of theirs      kinds.py
    effects.py       what holds for mails that some rules fit, and which of two is weaker
    conditions.py    does one rule fit wherever another one does?
    differences.py   what is reported
    demands.py       what must arrive sealed      expectations.py: tests.toml
    time_limit.py    the time limit of a comparison
"""
