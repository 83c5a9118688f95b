"""Rules about content_filter, smtpd_proxy_filter and relayhost: that one leads to the relay, and wastes no keys.
Standard: FILTER_README, SMTPD_PROXY_README, postconf(5).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from relay.config import Address
from relay.postfix.flow import MailFlow, Side, Way, destination, entries, is_loopback, listens
from relay.postfix.settings import MasterService, PostfixFault, PostfixSettings

FEW_RECIPIENTS = 10
"""A transport that takes fewer at a time spends noticeably more keys than mail needs."""
_LOCAL = ipaddress.ip_address("127.0.0.1")
"""Where Postfix connects from."""
TLS_THAT_WAITS = ("encrypt", "dane-only", "fingerprint", "verify", "secure")


def no_way_in(flow: MailFlow) -> Iterator[PostfixFault]:
    """Nothing leads to a direction that only this host can reach."""
    for side in flow.sides:
        addresses = entries(side.direction)
        if side.ways or side.by_milter or not addresses or not all(is_loopback(address.host) for address in addresses):
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
            yield PostfixFault(
                "no-way-in",
                f"{flow.settings.directory}",
                f"no content_filter, smtpd_proxy_filter or relayhost leads to the relay's [{side.name}] ({listening})",
                f"apply one of the directories deploy/postfix/{side.name}-*, or take these addresses out of relay.toml",
            )


def unknown_transport(flow: MailFlow) -> Iterator[PostfixFault]:
    """A filter names a service that master.cf does not have: mail waits for ever."""
    for side in flow.sides:
        for way in side.filters:
            if way.setting == "content_filter" and way.transport is None:
                yield PostfixFault(
                    "unknown-transport",
                    flow.settings.where(way.setting, way.source),
                    f"master.cf has no service {way.transport_name}/unix, so all mail waits in the queue",
                    "add it, as master.cf in deploy/postfix does",
                )


def wrong_protocol(flow: MailFlow) -> Iterator[PostfixFault]:
    """SMTP is spoken where the relay speaks LMTP, or the other way round."""
    for side in flow.sides:
        for way in side.ways:
            target = destination(f"{way.transport_name}:{way.value.removeprefix(f'{way.transport_name}:')}")
            wanted = listens(side.direction, target[1]) if target else None
            if wanted and wanted != way.protocol and (way.transport or way.setting == "smtpd_proxy_filter"):
                yield PostfixFault(
                    "wrong-protocol",
                    flow.settings.where(way.setting, way.source),
                    f"Postfix speaks {way.protocol.upper()} there and the relay {wanted.upper()}",
                    f"name the relay's {way.protocol.upper()} address, or a service that runs {wanted}(8)",
                )


def filtered_twice(flow: MailFlow) -> Iterator[PostfixFault]:
    """One service sends its mail through one direction before and after the queue."""
    for source in flow.sources:
        names = flow.leads_to(source)
        if len(names) != len(set(names)):
            yield PostfixFault(
                "filtered-twice",
                f"master.cf {source.key}",
                "mail goes through the relay by smtpd_proxy_filter and then again by content_filter",
                f"postconf -P '{source.key}/content_filter='",
            )


def transport_settings(flow: MailFlow) -> Iterator[PostfixFault]:
    """What the services that carry mail to the relay are told."""
    for side in flow.sides:
        for name, transport in side.transports.items():
            yield from _recipients(flow.settings, name)
            yield from _at_once(flow.settings, name, transport, side)
            yield from _lines(flow.settings, transport)
            yield from _patience(flow.settings, transport, side)
            yield from _tls(flow.settings, transport)
            if any(way.transport_name == name for way in side.filters):
                yield from _xforward(flow.settings, transport)


def proxy_settings(flow: MailFlow) -> Iterator[PostfixFault]:
    """What smtpd(8) is told where it is a proxy in front of the relay."""
    settings = flow.settings
    for side in flow.sides:
        for way in side.filters:
            if way.setting != "smtpd_proxy_filter":
                continue
            if "speed_adjust" not in settings.words("smtpd_proxy_options", way.source):
                yield PostfixFault(
                    "proxy-slow-clients",
                    _place(way),
                    "each slow client holds a connection of the relay for as long as it sends",
                    "set smtpd_proxy_options=speed_adjust",
                )
            if settings.seconds("smtpd_proxy_timeout", way.source) < side.direction.timeout:
                yield PostfixFault(
                    "impatient",
                    settings.where("smtpd_proxy_timeout", way.source),
                    f"Postfix gives up before the relay may answer ([{side.name}] timeout is "
                    f"{side.direction.timeout:.0f} s), and the client sends again what may have left",
                    "set smtpd_proxy_timeout=600s",
                )


def _leads_astray(flow: MailFlow) -> str:
    """The first filter on this host that leads to no direction of the relay, "" for none."""
    settings = flow.settings
    for name in ("content_filter", "smtpd_proxy_filter"):
        sources: list[MasterService | None] = [None, *(each for each in flow.sources if name in each.overrides)]
        for source in sources:
            value = settings.value(name, source)
            target = destination(value if name == "content_filter" else f"smtpd:{value}")
            if target and is_loopback(target[1].host) and not _is_ours(flow, target[1]):
                return settings.where(name, source)
    return ""


def _is_ours(flow: MailFlow, address: Address) -> bool:
    return any(listens(side.direction, address) for side in flow.sides)


def _place(way: Way) -> str:
    return f"master.cf {way.source.key}" if way.source else "main.cf"


def _recipients(settings: PostfixSettings, name: str) -> Iterator[PostfixFault]:
    parameter = f"{name}_destination_recipient_limit"
    limit = settings.number(parameter) if parameter in settings.main else 0
    if 0 < limit < FEW_RECIPIENTS:
        yield PostfixFault(
            "few-recipients",
            settings.where(parameter),
            "recipients at one peer share a key only where Postfix hands them over together; this spends a key for "
            + ("each recipient" if limit == 1 else f"every {limit}"),
            f"postconf -e '{parameter} = 100'",
        )


def _at_once(settings: PostfixSettings, name: str, transport: MasterService, side: Side) -> Iterator[PostfixFault]:
    """How many mails go to the relay at a time: more than one, and not more than it takes."""
    parameter = f"{name}_destination_concurrency_limit"
    limit = settings.number(parameter)
    if limit == 1:
        yield PostfixFault(
            "one-at-a-time",
            settings.where(parameter),
            "all mail has the relay as its destination, so one slow mail stops every other",
            f"postconf -e '{parameter} = 20'",
        )
    direction = side.direction
    trusted = any(_LOCAL in network for network in direction.trusted)
    taken = direction.connections if trusted else min(direction.connections, direction.connections_per_client)
    processes = transport.process_limit
    most = int(processes) if processes.isdecimal() else settings.number("default_process_limit")
    if min((number for number in (limit, most) if number), default=taken + 1) > taken:
        yield PostfixFault(
            "too-many-at-once",
            settings.where(parameter),
            f"the relay's [{side.name}] takes {taken} connections at once and turns others away, and Postfix then "
            "pauses all mail",
            f"postconf -e '{parameter} = {taken}', or more connections in relay.toml",
        )


def _lines(settings: PostfixSettings, transport: MasterService) -> Iterator[PostfixFault]:
    parameter = f"{transport.command}_line_length_limit"
    if settings.number(parameter, transport) != 0:
        yield PostfixFault(
            "lines-folded",
            settings.where(parameter, transport),
            "Postfix breaks longer lines before the relay seals them, which breaks signatures",
            f"postconf -P '{transport.key}/{parameter}=0'",
        )


def _patience(settings: PostfixSettings, transport: MasterService, side: Side) -> Iterator[PostfixFault]:
    parameter = f"{transport.command}_data_done_timeout"
    if settings.seconds(parameter, transport) < 2 * side.direction.timeout:
        yield PostfixFault(
            "impatient",
            settings.where(parameter, transport),
            "the relay answers when its next hop has answered, which may take longer; Postfix then sends again",
            f"postconf -P '{transport.key}/{parameter}={max(1200, 2 * side.direction.timeout):.0f}'",
        )


def _tls(settings: PostfixSettings, transport: MasterService) -> Iterator[PostfixFault]:
    parameter = f"{transport.command}_tls_security_level"
    if settings.value(parameter, transport) in TLS_THAT_WAITS:
        yield PostfixFault(
            "filter-needs-tls",
            settings.where(parameter, transport),
            "the relay has no TLS on this address, so all mail waits in the queue",
            f"postconf -P '{transport.key}/{parameter}=none'",
        )


def _xforward(settings: PostfixSettings, transport: MasterService) -> Iterator[PostfixFault]:
    parameter = f"{transport.command}_send_xforward_command"
    if settings.value(parameter, transport) != "yes":
        yield PostfixFault(
            "no-xforward",
            settings.where(parameter, transport),
            "the relay's log then names 127.0.0.1 for every mail, not the client, nor Postfix's queue ID",
            f"postconf -P '{transport.key}/{parameter}=yes'",
        )
