"""Rules on content_filter, smtpd_proxy_filter and relayhost: they must lead to the relay, without wasting keys.
Standard: FILTER_README, SMTPD_PROXY_README, postconf(5).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

from relay.config import TCPAddress
from relay.files import commands
from relay.postfix.flow import (
    PROTOCOLS,
    MailFlow,
    RelayDirection,
    Way,
    destination,
    entries,
    is_loopback,
    listens,
)
from relay.postfix.settings import MasterService, PostfixFault, PostfixSettings, split_list

FEW_RECIPIENTS = 10
"""Minimum number of recipients at a time; below it a transport uses noticeably more keys."""
_LOCAL = ipaddress.ip_address("127.0.0.1")
"""Postfix's address as a client."""
TLS_THAT_WAITS = ("encrypt", "dane-only", "fingerprint", "verify", "secure")


def no_way_in(flow: MailFlow) -> Iterator[PostfixFault]:
    """Nothing leads to a direction that only this host can reach."""
    for side in flow.sides:
        addresses: dict[TCPAddress | Path, str] = dict(entries(side.direction).items())
        if side.direction.milter is not None:
            addresses[side.direction.milter] = "milter"
        here_alone = all(isinstance(each, Path) or is_loopback(each.host) for each in addresses)
        if side.ways or side.by_milter or not addresses or not here_alone:
            continue
        listening = " and ".join(f"{protocol} {address}" for address, protocol in addresses.items())
        if astray := _leads_astray(flow):
            yield PostfixFault(
                "filter-elsewhere",
                astray,
                f"the relay does not listen there; its [{side.name}] listens on {listening}",
                "write that address, or change relay.toml",
            )
        else:
            becomes = {
                "outgoing": "mail LEAVES IN CLEAR past the relay",
                "incoming": "what arrives sealed is opened by nobody",
            }
            yield PostfixFault(
                "no-way-in",
                f"{flow.settings.directory}",
                f"{becomes[side.name]}: no content_filter, smtpd_proxy_filter, milter or relayhost leads to the "
                f"relay's [{side.name}] ({listening})",
                f"run `qumail-relay setup` again, which puts Postfix beside the relay that there is; by hand: "
                f"deploy/postfix/{side.name}-*; or take these addresses out of relay.toml",
            )


def unknown_transport(flow: MailFlow) -> Iterator[PostfixFault]:
    """A filter names a service that master.cf lacks: mail waits for ever."""
    for handover in (handover for side in flow.sides for handover in side.filters):
        if handover.setting == "content_filter" and handover.transport is None:
            yield flow.settings.of(handover.setting, handover.source).fault(
                "unknown-transport",
                f"master.cf has no service {handover.transport_name}/unix, so all mail waits in the queue",
                "add it, as master.cf in deploy/postfix does",
            )


def lost(flow: MailFlow) -> Iterator[PostfixFault]:
    """A filter names a service that hands nothing on: discard(8) reports success."""
    for handover in (handover for side in flow.sides for handover in side.ways):
        transport = handover.transport
        if transport is not None and transport.command not in PROTOCOLS:
            yield PostfixFault(
                "transport-lost",
                f"master.cf {transport.key}",
                f"{transport.command}(8) does not hand mail to the relay: it IS LOST, or goes elsewhere in clear",
                "let it run smtp or lmtp, as master.cf in deploy/postfix does",
            )


def unreachable(flow: MailFlow) -> Iterator[PostfixFault]:
    """Postfix does not use this address family: mail bounces, and so does its bounce."""
    for handover in (handover for side in flow.sides for handover in side.ways):
        target, transport = _target(handover), handover.transport
        kind = _kind_of(target.host) if target is not None else ""
        if transport is None or not kind:
            continue
        spoken = flow.settings.of("inet_protocols", transport)
        if not {"all", kind} & set(split_list(spoken.value)):
            text = f"Postfix speaks no {kind}, and hands mail to {target}: it bounces, and with its bounce IS LOST"
            yield spoken.fault("transport-lost", text, spoken.to("all"))


def wrong_protocol(flow: MailFlow) -> Iterator[PostfixFault]:
    """Postfix speaks SMTP where the relay speaks LMTP, or vice versa."""
    for side in flow.sides:
        for handover in side.ways:
            target = _target(handover)
            expected = listens(side.direction, target) if target else None
            if (
                expected
                and expected != handover.protocol
                and (handover.transport_name in side.transports or handover.setting == "smtpd_proxy_filter")
            ):
                yield flow.settings.of(handover.setting, handover.source).fault(
                    "wrong-protocol",
                    f"Postfix speaks {handover.protocol.upper()} there and the relay {expected.upper()}",
                    f"name the relay's {handover.protocol.upper()} address, or a service that runs {expected}(8)",
                )


def _target(way: Way) -> TCPAddress | None:
    """The address that mail is handed to; None if it is no TCP address."""
    found = destination(f"{way.transport_name}:{way.value.removeprefix(f'{way.transport_name}:')}")
    return found[1] if found else None


def _kind_of(host: str) -> str:
    """The word of inet_protocols for a numeric address; "" for a name, which may have addresses of both families."""
    try:
        return f"ipv{ipaddress.ip_address(host).version}"
    except ValueError:
        return ""


def filtered_twice(flow: MailFlow) -> Iterator[PostfixFault]:
    """A service sends its mail through one direction both before and after the queue."""
    for source in flow.sources:
        names = flow.leads_to(source)
        if len(names) != len(set(names)):
            yield PostfixFault(
                "filtered-twice",
                f"master.cf {source.key}",
                "mail goes through the relay by smtpd_proxy_filter and then again by content_filter",
                commands.command("postconf", "-P", f"{source.key}/content_filter="),
            )


def transport_settings(flow: MailFlow) -> Iterator[PostfixFault]:
    """Rules on options of services that carry mail to the relay."""
    for side in flow.sides:
        for name, transport in side.transports.items():
            yield from _at_once(flow.settings, name, transport, side)
            yield from _transport(flow.settings, transport, side)
            few = flow.settings.of(f"{name}_destination_recipient_limit")
            if 0 < few.number < FEW_RECIPIENTS:
                yield few.fault(
                    "few-recipients",
                    "recipients at one peer share a key only where Postfix hands them over together; this spends a key "
                    f"for {'each recipient' if few.number == 1 else f'every {few.number}'}",
                    few.to(100),
                )
            xforward = flow.settings.of(f"{transport.command}_send_xforward_command", transport)
            if xforward.value != "yes" and any(handover.transport_name == name for handover in side.filters):
                text = "the relay's log then names 127.0.0.1 for every mail, not the client, nor Postfix's queue ID"
                yield xforward.fault("no-xforward", text, xforward.to("yes"))


def proxy_settings(flow: MailFlow) -> Iterator[PostfixFault]:
    """Rules on options of smtpd(8) as a proxy in front of the relay."""
    for side in flow.sides:
        for handover in side.filters:
            if handover.setting != "smtpd_proxy_filter":
                continue
            if "speed_adjust" not in flow.settings.of("smtpd_proxy_options", handover.source).words:
                yield PostfixFault(
                    "proxy-slow-clients",
                    f"master.cf {handover.source.key}" if handover.source else "main.cf",
                    "each slow client holds a connection of the relay for as long as it sends",
                    "set smtpd_proxy_options=speed_adjust",
                )
            timeout = flow.settings.of("smtpd_proxy_timeout", handover.source)
            if timeout.seconds < side.direction.timeout:
                yield timeout.fault(
                    "impatient",
                    f"Postfix gives up before the relay may answer ([{side.name}] timeout is "
                    f"{side.direction.timeout:.0f} s), and the client sends again what may have left",
                    "set smtpd_proxy_timeout=600s",
                )


def _leads_astray(flow: MailFlow) -> str:
    """The first proxy on this host that is none of the relay's, or ""."""
    name = "smtpd_proxy_filter"
    sources: list[MasterService | None] = [None, *(each for each in flow.sources if name in each.overrides)]
    for setting in (flow.settings.of(name, source) for source in sources):
        target = destination(f"smtpd:{setting.value}")
        ours = target and any(listens(side.direction, target[1]) for side in flow.sides)
        if target and is_loopback(target[1].host) and not ours:
            return setting.where
    return ""


def _at_once(
    settings: PostfixSettings, name: str, transport: MasterService, side: RelayDirection
) -> Iterator[PostfixFault]:
    """The number of simultaneous mails to the relay: more than one, and within the relay's limit."""
    limit = settings.of(f"{name}_destination_concurrency_limit")
    if limit.number == 1:
        text = "all mail has the relay as its destination, so one slow mail stops every other"
        yield limit.fault("one-at-a-time", text, limit.to(20))
    direction = side.direction
    trusted = any(_LOCAL in network for network in direction.trusted)
    taken = direction.connections if trusted else min(direction.connections, direction.connections_per_client)
    processes = transport.process_limit
    most = int(processes) if processes.isdecimal() else settings.of("default_process_limit").number
    if min((number for number in (limit.number, most) if number), default=taken + 1) > taken:
        yield limit.fault(
            "too-many-at-once",
            f"the relay's [{side.name}] takes {taken} connections at once and turns others away, and Postfix then "
            "pauses all mail",
            f"{limit.to(taken)}, or more connections in relay.toml",
        )


def _transport(settings: PostfixSettings, transport: MasterService, side: RelayDirection) -> Iterator[PostfixFault]:
    """Rules on options of smtp(8) or lmtp(8): lines unchanged, timeouts, no TLS that the relay lacks."""
    lines = settings.of(f"{transport.command}_line_length_limit", transport)
    if lines.number != 0:
        text = "Postfix breaks longer lines before the relay seals them, which breaks signatures"
        yield lines.fault("lines-folded", text, lines.to(0))
    patience = settings.of(f"{transport.command}_data_done_timeout", transport)
    if patience.seconds < 2 * side.direction.timeout:
        yield patience.fault(
            "impatient",
            "the relay answers when its next hop has answered, which may take longer; Postfix then sends again",
            patience.to(f"{max(1200, 2 * side.direction.timeout):.0f}"),
        )
    tls = settings.of(f"{transport.command}_tls_security_level", transport)
    if tls.value in TLS_THAT_WAITS:
        text = "the relay has no TLS on this address, so all mail waits in the queue"
        yield tls.fault("filter-needs-tls", text, tls.to("none"))
