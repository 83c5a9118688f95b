"""Rules about mail that leaves past the relay, in clear: services, bounces, aliases, second ways out.
Standard: FILTER_README, postconf(5), header_checks(5), aliases(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from relay.errors import ConfigError
from relay.mail import domain_of
from relay.postfix.fault import Fault
from relay.postfix.picture import Picture, Side, destination, is_milter_of, listens, milters
from relay.postfix.settings import Service, command, split_list

FILTERLESS_MAIL = ("bounce", "defer", "trace")
SEQUENTIAL_TABLES = ("hash", "btree", "lmdb", "cdb", "texthash")
"""The kinds of tables that can be listed."""
SAMPLE = "From: MAILER-DAEMON (Mail Delivery System)"
"""A field that every bounce has."""


def services_past(picture: Picture) -> Iterator[Fault]:
    """Mail that comes in by one service is filtered, by another it is not."""
    outgoing, incoming = picture.side("outgoing"), picture.side("incoming")
    if outgoing is None or not outgoing.watched:
        return
    through_incoming = [each for each in incoming.reinjections if each not in outgoing.reinjections] if incoming else []
    for service in (*picture.sources, *through_incoming):
        if not picture.leads_to(service):
            yield Fault(
                "bypass",
                f"master.cf {service.key}",
                "what comes in by it does not go through the relay and leaves in clear",
                "take its own content_filter, no_milters and milters out, so that those of main.cf hold",
            )


def second_ways_out(picture: Picture) -> Iterator[Fault]:
    """When the relay does not answer, mail must wait, and not go somewhere else."""
    settings = picture.settings
    for side in picture.sides:
        for transport in side.transports.values():
            parameter = f"{transport.command}_fallback_relay"
            if settings.value(parameter, transport):
                yield Fault(
                    "fallback",
                    settings.where(parameter, transport),
                    "when the relay does not answer, mail goes there, past it and in clear",
                    f"postconf -P '{transport.key}/{parameter}='",
                )
        if len(side.filters) < len(side.ways):
            for parameter in ("sender_dependent_relayhost_maps", "sender_dependent_default_transport_maps"):
                if settings.value(parameter):
                    yield Fault(
                        "bypass",
                        settings.where(parameter),
                        "mail of these senders goes another way than relayhost, past the relay and in clear",
                        f"postconf -e '{parameter} ='",
                    )


async def bounces_past(picture: Picture) -> list[Fault]:
    """Content filters do not see the mail that Postfix makes itself, and bounces quote what they are about."""
    outgoing = picture.side("outgoing")
    if outgoing is None or not outgoing.watched:
        return []
    settings, faults = picture.settings, []
    for name in FILTERLESS_MAIL:
        service = settings.service(name, "unix")
        if service is None or await _filtered(picture, outgoing, service):
            continue
        octets = settings.number("bounce_size_limit", service)
        faults.append(
            Fault(
                "bounces-bypass",
                f"master.cf {service.key}",
                f"notices that Postfix makes go past the relay, with up to {octets} octets of the mail in clear",
                "set its cleanup_service_name and internal_mail_filter_classes as deploy/postfix/outgoing-lmtp says",
            )
        )
    return faults


async def aliases_past(picture: Picture) -> list[Fault]:
    """Forwarding by aliases(5) starts behind the relay, and that by virtual(5) too where the relay is a milter."""
    outgoing = picture.side("outgoing")
    if outgoing is None or not outgoing.watched:
        return []
    settings = picture.settings
    own = {*picture.config.site.domains, *settings.words("mydestination")}
    behind = {"alias_maps": "postalias"}
    remedy = "forward with virtual_alias_maps, which work in front of it"
    if not outgoing.filters:
        behind["virtual_alias_maps"] = "postmap"
        remedy = "let users give such mail the address it goes to, or take a content filter instead of the milter"
    faults = []
    for parameter, program in behind.items():
        for table in split_list(settings.value(parameter)):
            targets = await _alias_targets(picture, program, table)
            if outside := [target for target in targets if domain_of(target) not in own]:
                shown = ", ".join(outside[:3]) + (", ..." if len(outside) > 3 else "")
                faults.append(
                    Fault(
                        "aliases-bypass",
                        f"{parameter} {table}",
                        f"forwards to {shown}: what aliases send on starts behind the relay and leaves in clear",
                        remedy,
                    )
                )
    return faults


async def _filtered(picture: Picture, outgoing: Side, service: Service) -> bool:
    """Whether the notices that this service makes are sent through the relay."""
    settings = picture.settings
    cleanup = settings.service(settings.value("cleanup_service_name", service), "unix")
    if cleanup is None or "bounce" not in settings.words("internal_mail_filter_classes", service):
        return False
    if any(is_milter_of(settings, outgoing.direction, milter) for milter in milters(settings, cleanup)):
        return True
    for table in split_list(settings.value("header_checks", cleanup)):
        verb, _, target = (await _look_up(picture, table, SAMPLE)).strip().partition(" ")
        found = destination(target.strip())
        if verb.upper() == "FILTER" and found and listens(outgoing.direction, found[1]):
            return True
    return False


async def _look_up(picture: Picture, table: str, key: str) -> str:
    """What a table says, "" for nothing or where the table cannot be read."""
    try:
        out, _ = await command("postmap", picture.settings.directory, "-q", key, table)
    except ConfigError:
        return ""
    return out


async def _alias_targets(picture: Picture, program: str, table: str) -> list[str]:
    """The addresses with a domain to which an alias table forwards; none where it cannot be listed."""
    if table.partition(":")[0] not in SEQUENTIAL_TABLES:
        return []
    try:
        out, _ = await command(program, picture.settings.directory, "-s", table)
    except ConfigError:
        return []
    targets = [target for line in out.splitlines() for target in re.split(r"[,\s]+", line.partition("\t")[2])]
    return [target for target in targets if domain_of(target) and target[0] not in '|/:"']
