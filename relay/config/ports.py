"""The ports of deploy/postfix: where the relay listens beside a mail server, and where that takes mail back.
Standard: IANA has assigned none of them, none is ephemeral, and none is a habit of mail filters (amavisd: 10024).
"""

from __future__ import annotations

from typing import NamedTuple

from relay.config.values import TCPAddress

PORT_BASE = 15020
"""Base port, to which the offsets of a direction are added."""


class Ports(NamedTuple):
    """The ports of one direction; `back` is the mail server's, where the relay hands mail back."""

    lmtp: int
    listen: int
    back: int
    milter: int


OUTGOING = Ports(lmtp=PORT_BASE + 4, listen=PORT_BASE + 5, back=PORT_BASE + 6, milter=PORT_BASE + 8)
INCOMING = Ports(lmtp=PORT_BASE + 14, listen=PORT_BASE + 15, back=PORT_BASE + 16, milter=PORT_BASE + 18)
STATUS = PORT_BASE + 9
"""Port of the status page where setup writes the configuration."""


def local(port: int, base: int = PORT_BASE) -> TCPAddress:
    """The loopback address that stands for this port where the ports of a site begin at `base`."""
    return TCPAddress("127.0.0.1", port - PORT_BASE + base)
