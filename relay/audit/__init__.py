"""What an auditor can check: records of mails and of policies, in files that are only added to.
Standard: deploy/AUDIT.md; each record holds the SHA-256 of the one before, so that none can be changed unnoticed.

| read | for |
|---|---|
| entries.py | what stands in the ledger: mail that left with less than it could have, and how addresses stand there |
| chain.py | the files: adding records to them under a lock, one chain over all |
| writing.py | what a process writes: at once and flushed, or soon; what it had to write when it was killed |
| sole.py | one relay alone adds to a directory |
| policies.py, policy_fields.py, policy_places.py | the records of sets of policies; what stands there; finding them |
| upkeep.py | files that are finished are compressed, and one day deleted |
| reading.py | all records in order, and whether they are one chain |
| checkpoint.py | a signed statement of where the chain is, which an auditor keeps |
"""
