"""Other programs' filters that a Postfix uses: milters, and content filters such as amavisd.
Standard: MILTER_README, FILTER_README: without its milter Postfix answers 4xx, without its filter mail waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from relay.config import TCPAddress
from relay.postfix import flow, ours
from relay.postfix.flow import MailFlow, address_in, destination, foreign_filter, is_loopback


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another program's filter on this host; `until` is the effect while it does not answer."""

    address: TCPAddress | Path
    where: str
    until: str


def neighbours(mail_flow: MailFlow) -> Iterator[Neighbour]:
    """Each filter of another program on this host."""
    settings = mail_flow.settings
    for service in settings.services:
        if service.command not in ("smtpd", "pickup", "qmqpd"):
            continue
        name = "smtpd_milters" if service.command == "smtpd" else "non_smtpd_milters"
        for milter in flow.milters(settings, service):
            address = address_in(milter) or _socket(milter, Path(settings.value("queue_directory")))
            foreign = ours.is_foreign(settings, mail_flow.config, milter)
            if address is not None and foreign and (isinstance(address, Path) or is_loopback(address.host)):
                yield Neighbour(address, settings.of(name, service).where, f"{service.key} answers 451, or skips it")
        value = foreign_filter(mail_flow, service)
        target = destination(value)
        if target is not None and is_loopback(target[1].host) and not ours.stale_filter(mail_flow.config, value):
            yield Neighbour(target[1], settings.of("content_filter", service).where, "all this mail waits")


def _socket(milter: str, queue: Path) -> Path | None:
    """A milter's socket; for a service in a chroot an absolute path is relative to the queue directory."""
    kind, _, path = milter.partition(":")
    within = queue / path.lstrip("/")
    return None if kind != "unix" else within if within.exists() or not path.startswith("/") else Path(path)
