"""What the sealed envelope does to a mail on its way in: who gets it, from whom, and how often.
Standard: relay/FORMAT.md, the receiver's order; seen from outside, over SMTP, with SQLite and PostgreSQL.
"""
