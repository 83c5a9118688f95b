"""Rules about mail that leaves past the relay, in clear: services, bounces, second ways out.
Standard: FILTER_README, postconf(5), header_checks(5).
"""

from __future__ import annotations

from collections.abc import Iterator

from relay.errors import ConfigError
from relay.postfix.fault import Fault
from relay.postfix.picture import Picture, Side, destination, is_milter_of, listens, milters
from relay.postfix.settings import Service, command, split_list

FILTERLESS_MAIL = ("bounce", "defer", "trace")
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
