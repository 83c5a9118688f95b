"""The ports of deploy/postfix: listening ports of the relay beside a mail server, and the server's re-injection ports.
Standard: none of them is assigned by IANA, ephemeral, or common for mail filters (amavisd: 10024).
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
"""Port of the status page in configurations written by setup."""


def local(port: int, base: int = PORT_BASE) -> TCPAddress:
    """The loopback address of this port if the ports of a site begin at `base`."""
    return TCPAddress("127.0.0.1", port - PORT_BASE + base)
