"""How Postfix and relay are connected: which mail enters which direction, and where it returns.
Standard: FILTER_README (after-queue), SMTPD_PROXY_README (before-queue), transport(5) for the form of destinations.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from relay.config import Config, DirectionSettings, Server, TCPAddress
from relay.postfix.settings import MasterService, PostfixSettings, split_list

Protocol = Literal["smtp", "lmtp"]
PROTOCOLS = ("smtp", "lmtp")
RELAYHOST_SETTINGS = ("relayhost", "default_transport", "relay_transport")


@dataclass(frozen=True, slots=True)
class Way:
    """A setting that leads from Postfix to the relay.

    `source` is the service with the setting, None for main.cf. `transport` is the service of master.cf that carries the
    mail; None with smtpd_proxy_filter (smtpd(8) itself does), or if the service is missing.
    """

    setting: str
    value: str
    source: MasterService | None
    transport_name: str
    transport: MasterService | None
    protocol: Protocol


@dataclass(frozen=True, slots=True)
class RelayDirection:
    """One direction of the relay, as this Postfix uses it.

    `handed_back` are the local addresses that the relay hands mail to, `reinjections` the services there. `by_milter`:
    whether Postfix asks the relay's milter of this direction.
    """

    name: str
    direction: DirectionSettings
    ways: tuple[Way, ...]
    handed_back: tuple[TCPAddress, ...]
    reinjections: tuple[MasterService, ...]
    by_milter: bool

    @property
    def filters(self) -> tuple[Way, ...]:
        """The ways by a filter, after or before the queue."""
        return tuple(handover for handover in self.ways if handover.setting not in RELAYHOST_SETTINGS)

    @property
    def transports(self) -> dict[str, MasterService]:
        """The services of master.cf that bring mail here, by name; only smtp(8) and lmtp(8) can."""
        known = ((each.transport_name, each.transport) for each in self.ways if each.transport is not None)
        return {name: transport for name, transport in known if transport.command in PROTOCOLS}


@dataclass(frozen=True, slots=True)
class MailFlow:
    """The input of all rules."""

    settings: PostfixSettings
    config: Config
    sides: tuple[RelayDirection, ...]

    @property
    def watched(self) -> RelayDirection | None:
        """The outgoing direction if it is used as a filter: then all mail must pass through it."""
        outgoing = self.side("outgoing")
        return outgoing if outgoing is not None and (outgoing.filters or outgoing.by_milter) else None

    def side(self, name: str) -> RelayDirection | None:
        """The direction `outgoing` or `incoming`, None if relay.toml lacks it."""
        return next((side for side in self.sides if side.name == name), None)

    @property
    def handed_to(self) -> Iterator[TCPAddress | Path]:
        """The relay's addresses that Postfix hands mail to, or asks as a milter."""
        for side in self.sides:
            targets = [_target(handover.setting, handover.value) for handover in side.ways]
            for address in entries(side.direction):
                if any(each is not None and _is_at(address, each[1]) for each in targets):
                    yield address
            if side.by_milter and side.direction.milter is not None:
                yield side.direction.milter

    @property
    def sources(self) -> list[MasterService]:
        """The services that accept mail from anybody but the relay."""
        back = {service.key for side in self.sides for service in side.reinjections}
        kinds = ("smtpd", "pickup", "qmqpd")
        return [each for each in self.settings.services if each.command in kinds and each.key not in back]

    def leads_to(self, service: MasterService) -> list[str]:
        """The names of the directions that filter this service's mail, once for each way."""
        settings = ("smtpd_proxy_filter", "content_filter") if service.command == "smtpd" else ("content_filter",)
        targets = [_target(name, self.settings.value(name, service)) for name in settings]
        by_filter = [
            side.name for side in self.sides for target in targets if target and listens(side.direction, target[1])
        ]
        by_filter = [] if self._leaves_before_the_queue(service) else [*by_filter, *self._behind_scanner(service)]
        return by_filter + [side.name for side in self.sides if self.is_asked(side, service)]

    @property
    def handing_back(self) -> list[MasterService]:
        """The services on this host where other content filters hand mail back, without being filtered by these again.

        A service whose mail goes to the incoming direction is for arriving mail, and is left out.
        """
        return [
            each
            for each in self.sources
            if each.command == "smtpd" and "content_filter" in each.overrides and not foreign_filter(self, each)
            if (at := service_address(each)) and is_loopback(at[0]) and "incoming" not in self._filtered_by(each)
        ]

    def _filtered_by(self, service: MasterService) -> list[str]:
        """The directions that this service's content filter leads to."""
        target = _target("content_filter", self.settings.value("content_filter", service))
        return [side.name for side in self.sides if target is not None and listens(side.direction, target[1])]

    def _behind_scanner(self, service: MasterService) -> list[str]:
        """The directions that a scanner of this service's mail hands on to."""
        value = foreign_filter(self, service)
        back = self.handing_back if value and self._is_scanner(value) else []
        return [side.name for side in self.sides if back and all(side.name in self._filtered_by(each) for each in back)]

    def _is_scanner(self, value: str) -> bool:
        """Whether a content filter is another program on this host, by pipe(8), smtp(8) or lmtp(8)."""
        name, _, rest = value.partition(":")
        transport, target = self.settings.service(name, "unix"), destination(value)
        if transport is None or transport.command not in (*PROTOCOLS, "pipe"):
            return False
        here = target is not None and self._is_here_and_no_way_back(target[1])
        return transport.command == "pipe" or rest.startswith("unix:") or here

    def _is_here_and_no_way_back(self, address: TCPAddress) -> bool:
        """Whether an address is on this host and not a reinjection service, which would bypass the relay."""
        back = {at[1] for side in self.sides for each in side.reinjections if (at := service_address(each))}
        return is_loopback(address.host) and address.port not in back

    def _leaves_before_the_queue(self, service: MasterService) -> bool:
        """Whether smtpd(8) hands its mail to a proxy that is neither ours nor another program on this host.

        The service's content_filter then sees none of the mail.
        """
        value = self.settings.value("smtpd_proxy_filter", service) if service.command == "smtpd" else ""
        if not value:
            return False
        target = _target("smtpd_proxy_filter", value)
        if target is None:
            return not value.startswith("unix:")
        ours = any(listens(side.direction, target[1]) for side in self.sides)
        return not (ours or self._is_here_and_no_way_back(target[1]))

    def is_asked(self, side: RelayDirection, service: MasterService) -> bool:
        """Whether the relay's milter of this direction sees this service's mail, for all clients."""
        if service.command == "smtpd" and self.settings.value("smtpd_milter_maps", service):
            return False
        running = milters(self.settings, service)
        return any(is_milter_of(self.settings, side.direction, milter) for milter in running)


def mail_flow(settings: PostfixSettings, config: Config) -> MailFlow:
    """The flow of this Postfix and this relay."""
    directions = (("outgoing", config.outgoing), ("incoming", config.incoming))
    sides = [_side(settings, name, direction) for name, direction in directions if direction is not None]
    return MailFlow(settings, config, tuple(sides))


def foreign_filter(flow: MailFlow, service: MasterService) -> str:
    """The other program's content filter that this service's mail goes to, or ""."""
    value = flow.settings.value("content_filter", service)
    target = destination(value)
    is_ours = target is not None and any(listens(side.direction, target[1]) for side in flow.sides)
    return "" if is_ours else value


def entries(direction: DirectionSettings) -> dict[TCPAddress, Protocol]:
    """Returns the relay's listeners of this direction, with their protocols."""
    protocols: tuple[tuple[TCPAddress | None, Protocol], ...] = ((direction.listen, "smtp"), (direction.lmtp, "lmtp"))
    return {address: protocol for address, protocol in protocols if address is not None}


def listens(direction: DirectionSettings, address: TCPAddress) -> Protocol | None:
    """The relay's protocol at this address, None if it does not listen there."""
    for entry, protocol in entries(direction).items():
        if _is_at(entry, address):
            return protocol
    return None


def _is_at(entry: TCPAddress, address: TCPAddress) -> bool:
    """Whether a connection to the address reaches the listener at the entry."""
    return entry.port == address.port and _same_host(entry.host, address.host)


def milters(settings: PostfixSettings, service: MasterService) -> list[str]:
    """The milters in effect for this service's mail, each as `inet:host:port` or `unix:path`."""
    if "no_milters" in settings.of("receive_override_options", service).words:
        return []
    name = "smtpd_milters" if service.command == "smtpd" else "non_smtpd_milters"
    items = [item.strip("{} ") for item in split_list(settings.value(name, service))]
    return [re.split(r"[,\s]", item)[0] for item in items]


def is_milter_of(settings: PostfixSettings, direction: DirectionSettings, milter: str) -> bool:
    """Whether this milter is the relay's of this direction."""
    ours = direction.milter
    if isinstance(ours, TCPAddress):
        address = address_in(milter)
        return address is not None and address.port == ours.port and _same_host(ours.host, address.host)
    kind, _, path = milter.partition(":")
    return ours is not None and kind == "unix" and Path(settings.value("queue_directory")) / path == ours


def is_loopback(host: str) -> bool:
    """Whether the address is only reachable on this host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def service_address(service: MasterService) -> tuple[str, int] | None:
    """Host ("" for all interfaces) and port of an inet service; None for others."""
    match = re.fullmatch(r"(?:\[?(?P<host>[^\]]*?)\]?:)?(?P<port>[^:]+)", service.name)
    if service.type not in ("inet", "pass") or not match:
        return None
    port = _port(match["port"])
    return (match["host"] or "", port) if port else None


def destination(value: str) -> tuple[str, TCPAddress] | None:
    """Transport and address in `transport:[host]:port`; None without a TCP address."""
    transport, _, rest = value.partition(":")
    target = address_in(rest)
    return (transport, target) if target else None


def _side(settings: PostfixSettings, name: str, direction: DirectionSettings) -> RelayDirection:
    ways = tuple(_ways(settings, direction))
    back = tuple(_handed_back(settings, direction))
    services = [
        service
        for service in settings.services
        if service.command == "smtpd" and (at := service_address(service))
        if any(at[1] == address.port and (not at[0] or _same_host(at[0], address.host)) for address in back)
    ]
    by_milter = any(
        is_milter_of(settings, direction, milter) for each in settings.services for milter in milters(settings, each)
    )
    return RelayDirection(name, direction, ways, back, tuple(services), by_milter)


def _handed_back(settings: PostfixSettings, direction: DirectionSettings) -> Iterator[TCPAddress]:
    """The next hops on this host: loopback, or an address in master.cf."""
    named = {at for service in settings.services if (at := service_address(service))}
    for hop in direction.next_hop:
        if not isinstance(hop, Server) or hop.protocol != "smtp" or not isinstance(hop.address, TCPAddress):
            continue
        if is_loopback(hop.address.host) or hop.address in named:
            yield hop.address


def _ways(settings: PostfixSettings, direction: DirectionSettings) -> Iterator[Way]:
    """Each setting of main.cf, and of services that accept mail, that leads to this direction."""
    takers = [each for each in settings.services if each.command in ("smtpd", "pickup", "qmqpd")]
    for setting in ("content_filter", "smtpd_proxy_filter", *RELAYHOST_SETTINGS):
        sources: list[MasterService | None] = [None, *(each for each in takers if setting in each.overrides)]
        for source in sources:
            value = settings.value(setting, source)
            target = _target(setting, value)
            if target and listens(direction, target[1]):
                yield _way(settings, setting, value, source, target[0])


def _way(settings: PostfixSettings, setting: str, value: str, source: MasterService | None, transport_name: str) -> Way:
    if setting == "smtpd_proxy_filter":
        return Way(setting, value, source, "smtpd", None, "smtp")
    transport = settings.service(transport_name, "unix")
    protocol: Protocol = "lmtp" if transport is not None and transport.command == "lmtp" else "smtp"
    return Way(setting, value, source, transport_name, transport, protocol)


def _target(setting: str, value: str) -> tuple[str, TCPAddress] | None:
    """Transport and address in the value of a setting; None if it has no TCP address."""
    if setting == "smtpd_proxy_filter":
        address = address_in(value if ":" in value else f"127.0.0.1:{value}")
        return ("smtpd", address) if address else None
    if setting == "relayhost":
        address = address_in(value)
        return ("smtp", address) if address else None
    return destination(value)


def address_in(text: str) -> TCPAddress | None:
    """The address in `[host]:port`, `host:port` or `inet:host:port`; None for other texts."""
    match = re.fullmatch(r"(?:inet:)?(?:\[([^\]]+)\]|([^:\[\]/]+)):([^:]+)", text.strip())
    port = _port(match[3]) if match else None
    return TCPAddress(match[1] or match[2], port) if match and port else None


def _port(text: str) -> int | None:
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        return socket.getservbyname(text, "tcp")
    except OSError:
        return None


def _same_host(ours: str, theirs: str) -> bool:
    """Whether a connection to `theirs` can reach a listener on `ours`."""
    return ours == theirs or ours in ("0.0.0.0", "::") or (is_loopback(ours) and is_loopback(theirs))  # noqa: S104
