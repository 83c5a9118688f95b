"""Fuzzing of everything that reads what others wrote: a target for each reader, run by the suite and for hours by command.
Standard: a target takes octets and raises only where something was found; `python -m tests.system.fuzz` lists the targets.

| file | reads |
|---|---|
| conversations.py | what a client says to the SMTP and LMTP entries |
| messages.py | MIME: headers, wrappers, the outside of sealed messages; the tripwire |
| structures.py | CMS in DER and BER, and whole sealed messages through the opener |
| smime.py | S/MIME messages of other programs, and the CMS inside of them |
| identities.py | composite keys, certificates, checkpoints |
| replies.py | what KMEs answer (ETSI GS QKD 014, SKIP) |
| rules.py | what policy rules look at in a message |
| senders.py | the From field of submitted mail |
| settings.py | relay.toml and policy files |
| edits.py, target.py | how inputs are changed; what a target is, and its bounds |
| found/ | inputs that broke something once, by target; the suite runs all of them |
"""
