"""Benchmarks: each measures one thing and gives a BenchResult, which `qumail-relay bench` shows.
Everything that a figure compares is measured in one run, on one machine, one after the other.

| read | for |
|---|---|
| processes.py | processes that are started and asked, and a relay that seals among them |
| traffic.py, sink.py | where mail comes from, and where it ends and is looked at |
| rounds.py | ways of mail in turn, round after round |
| mail.py | the relay beside a server that passes on (baselines.py) |
| milter.py | the milter and the content filter of a Postfix (postfix.py), beside a bare milter (baselines.py) |
| levels.py | what each level costs, beside its bare cryptography |
| keys.py, soak.py | the KM client: how fast, and how it stands a KME that fails |
| policy.py | loading and asking 100,000 policy files |
| result.py | what comes of each, and its printing |

Nothing imports this but the command line.
"""
