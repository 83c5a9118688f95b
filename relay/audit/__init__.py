"""The audit record: records of mails and of policies, in append-only files.
Standard: deploy/AUDIT.md; each record has the SHA-256 of the previous one, so that changes are detected.

| read | for |
|---|---|
| entries.py | entries of the ledger: mail that left with less protection than listed first; hashing of addresses |
| chain.py | the files: appending records under a lock, one chain over all |
| writing.py | a process's writer: flushed or batched; announcements for recovery after a kill |
| sole.py | the lock of a directory for one relay |
| policies.py, policy_fields.py, policy_places.py | records of policy sets: writing them, their fields, finding them |
| upkeep.py | finished files are compressed, and deleted when too old |
| reading.py | all records in order, and whether they are one chain |
| checkpoint.py | a signed statement of where the chain is, which an auditor keeps |
"""
