"""What a next hop's failure means for the mail: refused, held, or still free to be handed to another next hop.
Standard: RFC 5321 4.2.1 (reply codes), RFC 3463 (enhanced status codes), RFC 5321 6.1 (who has the mail).
"""

from __future__ import annotations

from relay.config import Server
from relay.errors import NextHopRefused, NextHopUnavailable
from relay.forward.channel import Reply


class NotTaken(NextHopUnavailable):
    """Nothing of the mail can have been accepted: another next hop may be asked."""


class TooManyRecipients(NotTaken):
    """Only this recipient was too many for one transaction (RFC 5321, 4.5.3.1.10)."""


class Gone(NotTaken):
    """The connection cannot be used: refused, broken, 421, or not the protocol that we speak."""


class Silent(Gone):
    """No answer in time: asking the same server again would cost the same time again."""


def fault(
    server: Server, command: str, reply: Reply, kind: type[NextHopUnavailable] = NotTaken
) -> NextHopRefused | NextHopUnavailable:
    """What a reply that is no success means; `kind` is what to raise for 4xx, and for codes that mean nothing."""
    cause = f"next hop {server}: {command}: {reply}"
    if 500 <= reply.code < 600:
        return NextHopRefused(cause, reply.status)
    return kind(cause, reply.status)
