"""QuMail Relay: a mail encryption gateway for organisations that share quantum keys (QKD).
Read outgoing.py and incoming.py first: they are the two journeys of a message.
"""
