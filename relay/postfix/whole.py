"""Rules about settings of the whole Postfix: misspelt ones, and those that make refusals and notices go wrong.
Standard: postconf(5).
"""

from __future__ import annotations

from collections.abc import Iterator

from relay.postfix.fault import Fault
from relay.postfix.picture import Picture

NOTICES = ("bounce", "2bounce", "delay")
CLASSES = (
    ("mydestination", "local_recipient_maps"),
    ("relay_domains", "relay_recipient_maps"),
    ("virtual_mailbox_domains", "virtual_mailbox_maps"),
)
"""The domains that Postfix takes mail for, and how it knows who is there: nothing means everybody."""


def warnings(picture: Picture) -> Iterator[Fault]:
    """What postconf itself finds: settings that nothing uses, and undefined names."""
    for warning in picture.settings.warnings:
        yield Fault("postconf", str(picture.settings.directory), warning, "mend or remove it")


def soft_bounce(picture: Picture) -> Iterator[Fault]:
    """Refusals are turned into deferrals."""
    services = [service for side in picture.sides for service in side.reinjections]
    for service in (None, *services):
        if picture.settings.value("soft_bounce", service) == "yes" and (
            service is None or "soft_bounce" in service.overrides
        ):
            yield Fault(
                "soft-bounce",
                picture.settings.where("soft_bounce", service),
                "what the relay or the policy files refuse stays in the queue for days, and its sender is not told",
                "postconf -e 'soft_bounce = no'" if service is None else f"postconf -PX {service.key}/soft_bounce",
            )


def notices(picture: Picture) -> Iterator[Fault]:
    """Copies of bounces and headers for the postmaster."""
    classes = [word for word in picture.settings.words("notify_classes") if word in NOTICES]
    if classes:
        yield Fault(
            "notices",
            picture.settings.where("notify_classes"),
            f"{', '.join(classes)}: the postmaster gets the header, with its subject, of mail sealed for others",
            "postconf -e 'notify_classes = resource, software'",
        )


def unknown_recipients(picture: Picture) -> Iterator[Fault]:
    """Mail that is taken for nobody is bounced, maybe to a peer in whose name an outsider has sent it."""
    settings = picture.settings
    takers = [each for each in picture.sources if each.command == "smtpd" and "incoming" in picture.leads_to(each)]
    for service in takers if picture.side("outgoing") is not None else ():
        restrictions = settings.words("smtpd_recipient_restrictions", service)
        if "reject_unverified_recipient" in restrictions:
            continue
        unlisted = settings.value("smtpd_reject_unlisted_recipient", service)
        if unlisted == "no" and "reject_unlisted_recipient" not in restrictions:
            yield _taken_for_nobody(settings.where("smtpd_reject_unlisted_recipient", service))
        for domains, known in CLASSES:
            if settings.value(domains, service) and not settings.value(known, service):
                yield _taken_for_nobody(settings.where(known, service))


def _taken_for_nobody(where: str) -> Fault:
    return Fault(
        "unknown-recipients",
        where,
        "mail for recipients who do not exist is taken and bounced later: forged in a peer's name, that costs key",
        "name the table of those who exist, or add reject_unverified_recipient to smtpd_recipient_restrictions",
    )
