"""Rules about size limits: what one part has taken, the next must take in its sealed form.
Standard: FORMAT.md (a sealed mail is up to 1.4 times as large), postconf(5): 0 means no limit.
"""

from __future__ import annotations

from collections.abc import Iterator

from relay.config import OutgoingSettings
from relay.postfix.fault import Fault
from relay.postfix.picture import Picture, Side
from relay.postfix.settings import Service

GROWTH = 1.4
"""Base64 in lines makes 1.37 of it; the rest is header, keys and padding."""


HEADER_ALONE = 100
"""Octets that every mail has more of; of a mail over bounce_size_limit Postfix returns the header alone."""


def sealed_too_large(picture: Picture) -> Iterator[Fault]:
    """Postfix refuses the sealed form of a mail that the relay has taken."""
    outgoing = picture.side("outgoing")
    if outgoing is not None:
        wanted: float = int(GROWTH * outgoing.direction.max_message_size)
        yield from _too_small(picture, outgoing, wanted, "the sealed form of the largest mail that the relay takes")
    incoming = picture.side("incoming")
    if incoming is not None and incoming.filters:
        limits = [_limit(picture, source) for source in picture.sources]
        wanted = min(max(limits, default=0), incoming.direction.max_message_size)
        yield from _too_small(picture, incoming, wanted, "the largest mail that the relay was given")


def sealed_not_taken(picture: Picture) -> Iterator[Fault]:
    """What peers have sealed must come in, by Postfix and by the relay."""
    incoming, outgoing = picture.side("incoming"), picture.side("outgoing")
    if incoming is None:
        return
    usual: int = OutgoingSettings.model_fields["max_message_size"].default
    original = outgoing.direction.max_message_size if outgoing else usual  # peers are taken to be like us
    for source in picture.sources:
        if source.command != "smtpd" or "incoming" not in picture.leads_to(source):
            continue
        limit = _limit(picture, source)
        where = picture.settings.where("message_size_limit", source)
        if limit < int(GROWTH * original):
            yield Fault(
                "size-sealed-refused",
                where,
                f"peers that take mail of {original} octets seal it to {int(GROWTH * original)}, which is refused",
                f"postconf -e 'message_size_limit = {int(GROWTH * original)}'",
            )
        if incoming.direction.max_message_size < limit < float("inf"):
            yield Fault(
                "size-relay-refuses",
                where,
                f"the relay's [incoming] takes {incoming.direction.max_message_size} octets, and what is larger is "
                "bounced after Postfix has taken it",
                f"set max_message_size = {limit:.0f} in relay.toml, or a smaller message_size_limit",
            )


def mailboxes_too_small(picture: Picture) -> Iterator[Fault]:
    """local(8) and virtual(8) deliver nothing at all where a mailbox may be smaller than a mail."""
    settings = picture.settings
    for parameter in ("mailbox_size_limit", "virtual_mailbox_limit"):
        if 0 < settings.number(parameter) < settings.number("message_size_limit"):
            yield Fault(
                "size-mailbox",
                settings.where(parameter),
                f"it is below message_size_limit ({settings.number('message_size_limit')}), so nothing is delivered",
                f"postconf -e '{parameter} = 0'",
            )


def bounces_not_header_alone(picture: Picture) -> Iterator[Fault]:
    """Outsiders can cause bounces, and each octet of one that is sealed for a peer may cost an octet of key."""
    outgoing, settings = picture.side("outgoing"), picture.settings
    for service in settings.services if outgoing is not None and outgoing.watched else ():
        if service.command == "bounce" and not 0 < settings.number("bounce_size_limit", service) <= HEADER_ALONE:
            yield Fault(
                "bounces-large",
                settings.where("bounce_size_limit", service),
                "bounces quote whole mails: outsiders, who can cause them, spend more of the peers' keys",
                "postconf -e 'bounce_size_limit = 1'",
            )


def _too_small(picture: Picture, side: Side, wanted: float, what: str) -> Iterator[Fault]:
    for service in side.reinjections:
        limit = _limit(picture, service)
        if limit < wanted:
            yield Fault(
                "size-back",
                picture.settings.where("message_size_limit", service),
                f"too small for {what} ({wanted:.0f} octets), which is lost to a bounce",
                f"set message_size_limit={wanted:.0f} or more",
            )


def _limit(picture: Picture, service: Service) -> float:
    """message_size_limit of a service in octets; infinite for 0."""
    return picture.settings.number("message_size_limit", service) or float("inf")
