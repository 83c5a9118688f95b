"""The IMAP listener: opens sealed messages in mailboxes that are hosted elsewhere; folder.py is the recipe.
Standard: RFC 3501 and its extensions as session.py lists them; see deploy/imap/README.md for the operator's side.
"""
