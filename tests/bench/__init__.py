"""Benchmarks, which `python -m tests.bench` shows: mail through whole relays (mail.py), or one part alone (the others).
Everything that a figure compares is measured in one run, on one machine, in turn.

| read | for |
|---|---|
| cases.py | what is measured and what is compared, with the aims: two tables |
| mail.py | the run: cases are chosen, and measured by rounds.py (mail, in turn) and others.py, imap.py (all else) |
| servers.py, processes.py, postfix.py | relays, KMEs, and a Postfix, each started when it is needed |
| baselines.py | what relays are compared with: servers that pass on, and a milter that replaces bodies |
| tools.py, traffic.py, sink.py | where mail comes from, where it ends, and where it is looked at |
| usage.py | processor time and memory of processes |
| figures.py, report.py, plot.py | medians, ratios, the JSON file; tables; the picture |
| levels.py | what each level costs, beside its bare cryptography |
| keys.py, soak.py | the KM client: how fast, and how it stands a KME that fails |
| policy.py | loading and asking 100,000 policy files |
| result.py | what comes of the last three, and the machine |
"""
