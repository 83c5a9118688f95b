"""Chains the relay with the scanners and other filters of a Postfix, or explains why that is unsafe.
Standard: FILTER_README, MILTER_README: a scanner reads leaving mail before it is sealed, arriving mail once it is open.

    content filter:  port 25 -> relay -> 15036 -> amavisd -> 10025 -> relay -> 15026
    milter:          opening milter, scanners, sealing milter, signers
"""

from __future__ import annotations

from collections.abc import Iterable

from relay.config import Config
from relay.config.values import Server
from relay.errors import ConfigError
from relay.files.commands import command
from relay.postfix import ours
from relay.postfix.bypass import COPIES
from relay.postfix.flow import MailFlow, address_in, destination, foreign_filter, is_loopback, listens
from relay.postfix.milters import SIGNS
from relay.postfix.settings import MasterService, split_list
from relay.setup.former import address_of
from relay.setup.postfix_lines import Lines

CHROOT = 4
"""Position of the chroot column in a line of master.cf (master(5))."""
UNCHANGED = "Postfix was not changed"


class NoRow(ConfigError):
    """Postfix's filters cannot be chained with the relay; the error says what to do."""


def behind_scanners(had: MailFlow, before: Lines, then: Lines, arrival: str) -> Lines:
    """Adapts `then` (unmodified deploy/postfix) to the content filters or milters that Postfix had `before`.

    `arrival` is the service at which mail arrives. Raises NoRow if they cannot be chained.
    """
    proxies = _proxies(had)
    if arrival in proxies:
        raise NoRow(
            f"master.cf {arrival}: smtpd_proxy_filter = {proxies[arrival]}: this filter reads mail before the relay "
            f"can open it; {UNCHANGED}: name it in content_filter instead (FILTER_README), then run setup again, which "
            "puts the relay in front of it and behind it"
        )
    chained = dict(then)
    opened = _opened(had.config)
    scanners = {each.key: value for each in had.sources if (value := foreign_filter(had, each))}
    main = before.get(("", "content_filter"), "")
    if _is_ours(had, main):
        main = ""
    reads = scanners.get(arrival, "") or before.get((opened, "content_filter"), "")
    services, sealing = {*scanners.values(), main, reads} - {""}, then.get(("", "content_filter"), "")
    if _is_ours(had, sealing):
        for service in _handing_back(had, services) if services else had.handing_back if proxies else ():
            chained[service.key, "content_filter"] = sealing
        chained["", "content_filter"] = main or sealing
    if opened and reads not in ("", main):
        chained[opened, "content_filter"] = reads
    inherited = before.get(("", "smtpd_milters"), "")
    running = split_list(before.get((arrival, "smtpd_milters"), inherited))
    reading = [each for each in running if _is_foreign(had, each) and not _signs(each)]
    if opened and reading != split_list(inherited):
        chained[opened, "smtpd_milters"] = ", ".join(reading)
    if opened and reading:
        _same_root(chained, opened, arrival)
    return chained


def between_milters(had: MailFlow, before: Lines, then: Lines, arrival: str) -> Lines:
    """The same for the relay as a milter."""
    for key, value in _proxies(had).items():
        raise NoRow(
            f"master.cf {key}: smtpd_proxy_filter = {value}: milters see no content there (MILTER_README); "
            f"{UNCHANGED}: name the filter in content_filter instead, and take --integration content-filter"
        )
    for service in had.sources:
        if value := foreign_filter(had, service):
            raise NoRow(
                f"master.cf {service.key}: content_filter = {value} would see what leaves only when a milter "
                f"has sealed it; {UNCHANGED}: take --integration content-filter, which stands behind it"
            )
    for name in COPIES:
        if value := before.get(("", name), ""):
            raise NoRow(
                f"main.cf: {name} = {value}: with the relay as milter such copies would leave in clear; {UNCHANGED}: "
                f"take --integration content-filter, or take it out: {command('postconf', '-X', name)}"
            )
    chained = dict(then)
    opening, sealing = split_list(then["", "smtpd_milters"])
    places = [("", "smtpd_milters"), ("", "non_smtpd_milters")]
    places += [(each.key, "smtpd_milters") for each in had.sources if before.get((each.key, "smtpd_milters"))]
    for place in places:
        foreign = [each for each in split_list(before.get(place, "")) if _is_foreign(had, each)]
        reading = [each for each in foreign if not _signs(each)]
        first = [] if place[1] == "non_smtpd_milters" else [opening]
        chained[place] = ", ".join([*first, *reading, sealing, *filter(_signs, foreign)])
    if opened := _opened(had.config):
        chained[opened, "smtpd_milters"] = chained["", "smtpd_milters"].removeprefix(f"{opening}, ")
        _same_root(chained, opened, arrival)
    return chained


def before_smarthost(config: Config, before: Lines) -> None:
    """Raises NoRow if mail leaves by another server than the relay's next hop, which would be bypassed."""
    value = before.get(("", "relayhost"), "")
    outgoing = config.outgoing
    address = address_in(value) or address_in(f"{value}:25")
    hops = [getattr(hop, "address", None) for hop in outgoing.next_hop] if outgoing is not None else []
    leave_out = command("postconf", "-X", "relayhost")
    if value and address not in (*hops, outgoing and outgoing.listen):
        raise NoRow(
            f"main.cf: relayhost = {value}: mail leaves by it, and relay.toml names another next hop; {UNCHANGED}: "
            f"set it up anew with --replace --next-hop {address or value}, or take it out: {leave_out}"
        )


def _proxies(had: MailFlow) -> dict[str, str]:
    """Proxy filters of other programs, by service."""
    name = "smtpd_proxy_filter"
    values = {each.key: had.settings.value(name, each) for each in had.sources if each.command == "smtpd"}
    to_relay = {hop.value for side in had.sides for hop in side.filters if hop.setting == name}
    return {key: value for key, value in values.items() if value and value not in to_relay}


def _handing_back(had: MailFlow, scanners: Iterable[str]) -> list[MasterService]:
    """Returns the services to which scanners hand mail back. Raises NoRow if unknown."""
    for value in scanners:
        target = destination(value)
        transport = had.settings.service(value.partition(":")[0], "unix")
        if target is None or not is_loopback(target[1].host) or transport is None or transport.command == "pipe":
            raise NoRow(
                f"content_filter = {value}: setup cannot see where this filter hands mail back, where the relay has to "
                f"take it; {UNCHANGED}. By hand: apply deploy/postfix, keep content_filter, and set "
                f"content_filter={ours.TRANSPORT}:... for the service at which the filter hands mail back"
            )
    services = had.handing_back
    if not services:
        raise NoRow(
            f"content_filter = {', '.join(scanners)}: master.cf has no smtpd service on loopback with an empty "
            f"content_filter, at which this filter would hand mail back; {UNCHANGED}: add one as FILTER_README says"
        )
    return services


def _same_root(lines: Lines, service: str, like: str) -> None:
    """Gives a service the chroot of another, in which the path of a milter's socket is valid."""
    fields, others = lines[service, ""].split(), lines.get((like, ""), "").split()
    if len(others) > CHROOT:
        fields[CHROOT] = others[CHROOT]
        lines[service, ""] = " ".join(fields)


def _opened(config: Config) -> str:
    """The service that takes back opened mail, or ""."""
    hop = config.incoming.next_hop[0] if config.incoming is not None else None
    return f"{hop.address}/inet" if isinstance(hop, Server) else ""


def _is_ours(had: MailFlow, value: str) -> bool:
    target = destination(value)
    return target is not None and any(listens(side.direction, target[1]) for side in had.sides)


def _is_foreign(had: MailFlow, item: str) -> bool:
    return ours.is_foreign(had.settings, had.config, address_of(item))


def _signs(item: str) -> bool:
    return SIGNS.search(item) is not None
