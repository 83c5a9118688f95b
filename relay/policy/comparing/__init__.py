"""Compares two sets of policies, and proves that an edit weakens nothing, or says what could not be shown.
Standard: policies/README.md; soundness comes first, then few false alarms, then speed.

From a set down to a letter::

    whole.py         kind of recipient by kind, day by day      kinds.py views.py sides.py items.py
    proof.py         is one side weaker than the other for any mail?      cells.py context.py
    outcomes.py      the outcome for a mail to which some rules apply      combinations.py
    implied.py       does one rule apply wherever another one does?      languages.py search.py
    unproven.py      what is left, with an example mail
    listing.py       what samples show, for people      samples.py differences.py
    demands.py       what must arrive sealed      expectations.py: tests.toml
    time_limit.py    the time limit of a comparison
"""
