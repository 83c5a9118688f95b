"""Rules about settings of the whole Postfix: misspelt ones, and those that make refusals and notices go wrong.
Standard: postconf(5).
"""

from __future__ import annotations

from collections.abc import Iterator

from relay.postfix.fault import Fault
from relay.postfix.picture import Picture

NOTICES = ("bounce", "2bounce", "delay")


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
