"""Mails for the tests of next hops.
Standard: RFC 5322, as short as it may be.
"""

from __future__ import annotations

from relay.mail import Envelope, Mail, Origin, Recipient

TEXT = b"Subject: x\r\n\r\ntext\r\n"
BIG = TEXT + (b"x" * 30_000 + b"\r\n") * 600
"""More than the sockets' buffers hold, so that it cannot have been sent as a whole while nobody reads it."""
BEN = "ben@bob.example"
BEA = "bea@bob.example"


def mail(*recipients: str | Recipient, message: bytes = TEXT, origin: Origin | None = None, **envelope: object) -> Mail:
    """A mail from Ann; to Ben where nobody is named."""
    to = tuple(each if isinstance(each, Recipient) else Recipient(each) for each in recipients or (BEN,))
    values = {"sender": "ann@alice.example", **envelope}
    return Mail(Envelope(recipients=to, **values), message, origin=origin or Origin())  # type: ignore[arg-type]
