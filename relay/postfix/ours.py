"""Which settings of a Postfix lead to the relay, or led to it under its former integration.
The ports of deploy/postfix have one base, and its transport is `qumail`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from relay.config import Config, DirectionSettings, TCPAddress
from relay.config.ports import INCOMING, OUTGOING, PORT_BASE, Ports
from relay.postfix.flow import address_in, destination, is_loopback, is_milter_of, listens
from relay.postfix.settings import PostfixSettings

TRANSPORT, BOUNCES = "qumail", "qumail-bounces"
"""Services of deploy/postfix's master.cf."""


def directions(config: Config) -> list[DirectionSettings]:
    """The directions in relay.toml."""
    return [each for each in (config.outgoing, config.incoming) if each is not None]


def site_ports(config: Config) -> tuple[Ports, Ports] | None:
    """This site's ports of deploy/postfix; None if relay.toml has others."""
    bases = set(_bases(config))
    if len(bases) != 1:
        return None
    [base] = bases
    outgoing, incoming = (Ports(*(port - PORT_BASE + base for port in usual)) for usual in (OUTGOING, INCOMING))
    return outgoing, incoming


def led_here(config: Config, address: TCPAddress, kind: str) -> bool:
    """Whether this site's ports reserve the address for this kind (`lmtp`, `listen`, `milter`, `back`)."""
    ports = site_ports(config)
    return (
        ports is not None and is_loopback(address.host) and any(getattr(each, kind) == address.port for each in ports)
    )


def stale_filter(config: Config, value: str) -> bool:
    """Whether a content_filter or relayhost leads to the relay's address under another integration."""
    target = destination(value) or (("", address) if (address := address_in(value)) else None)
    if target is None or any(listens(each, target[1]) for each in directions(config)):
        return False
    named = target[0] == TRANSPORT and is_loopback(target[1].host)
    return named or (target[0] in ("", "smtp") and led_here(config, target[1], "listen"))


def stale_milter(settings: PostfixSettings, config: Config, milter: str) -> bool:
    """Whether a milter is at the relay's address under another integration."""
    address = address_in(milter)
    if address is None or any(is_milter_of(settings, each, milter) for each in directions(config)):
        return False
    return led_here(config, address, "milter")


def is_foreign(settings: PostfixSettings, config: Config, milter: str) -> bool:
    """Whether this is another program's milter."""
    is_ours = any(is_milter_of(settings, each, milter) for each in directions(config))
    return not (is_ours or stale_milter(settings, config, milter))


def _bases(config: Config) -> Iterator[int]:
    for direction, usual in ((config.outgoing, OUTGOING), (config.incoming, INCOMING)):
        if direction is not None:
            beside = direction.lmtp or direction.milter  # a smarthost has a next hop of its own
            hop = getattr(direction.next_hop[0], "address", None) if beside else None
            ports = Ports(*(_port(each) for each in (direction.lmtp, direction.listen, hop, direction.milter)))
            yield from (port - each + PORT_BASE for each, port in zip(usual, ports, strict=True) if port)


def _port(address: TCPAddress | Path | None) -> int:
    """The port of a loopback address, 0 for others."""
    return address.port if isinstance(address, TCPAddress) and is_loopback(address.host) else 0
