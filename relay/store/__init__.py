"""Durable state: keys received and issued, deliveries, quarantine, rate limits; a class for each.
Data is on disk when a method returns; sealed data is never returned modified.

The contract, the same for SQLite and PostgreSQL:

- database errors of any kind are StoreUnavailable, so the mail is held; a wrong file or URL is ConfigError;
- any number of processes may open one store at the same time;
- secrets are sealed under the newest SiteSecret and opened under any that its file still holds.
"""
