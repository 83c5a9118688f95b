"""What must survive a crash: keys received and issued, deliveries, the quarantine, rates; a class for each.
What a method stored is on the disk when it returns; what was sealed never comes back changed.

The contract, the same over SQLite and PostgreSQL:

- database trouble of any kind is StoreUnavailable, so the mail is held; a wrong file or URL is ConfigError;
- any number of processes may open one store at the same time;
- secrets are sealed under the newest SiteSecret and opened under any that its file still holds.
"""
