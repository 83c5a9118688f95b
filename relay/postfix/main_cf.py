"""Rules on global settings: misspelt ones, size limits, and those that break refusals and notices.
Standard: postconf(5), where 0 means no limit; FORMAT.md (a sealed mail is up to 1.4 times as large).
"""

from __future__ import annotations

from collections.abc import Iterator

from relay.config import OutgoingSettings
from relay.files import commands
from relay.postfix.flow import MailFlow, RelayDirection
from relay.postfix.settings import MasterService, PostfixFault

NOTICES = ("bounce", "2bounce", "delay")
CLASSES = (
    ("mydestination", "local_recipient_maps"),
    ("relay_domains", "relay_recipient_maps"),
    ("virtual_mailbox_domains", "virtual_mailbox_maps"),
)
"""The domains that Postfix accepts mail for, and the tables of their recipients: an empty one means everybody."""
GROWTH = 1.4
"""Growth factor of a sealed message: 1.37 for base64 in lines; the rest is header, keys and padding."""
ORDINARY = 1_000_000
"""Size of mail that is refused every day if it is too large, in bytes."""
HEADER_ALONE = 100
"""A size, in bytes, that all mails exceed; of mails above bounce_size_limit only the header is returned."""


def warnings(flow: MailFlow) -> Iterator[PostfixFault]:
    """postconf's own warnings: unused settings and undefined names."""
    for warning in flow.settings.warnings:
        yield PostfixFault("postconf", str(flow.settings.directory), warning, "fix or remove it")


def soft_bounce(flow: MailFlow) -> Iterator[PostfixFault]:
    """Refusals become deferrals."""
    services = [service for side in flow.sides for service in side.reinjections]
    for service in (None, *services):
        setting = flow.settings.of("soft_bounce", service)
        if setting.value == "yes" and (service is None or "soft_bounce" in service.overrides):
            yield setting.fault(
                "soft-bounce",
                "what the relay or the policy files refuse stays in the queue for days, and its sender is not told",
                setting.to("no")
                if service is None
                else commands.command("postconf", "-PX", f"{service.key}/soft_bounce"),
            )


def notices(flow: MailFlow) -> Iterator[PostfixFault]:
    """The postmaster gets copies of bounces and headers."""
    setting = flow.settings.of("notify_classes")
    if classes := [word for word in setting.words if word in NOTICES]:
        text = f"{', '.join(classes)}: the postmaster gets the header, with its subject, of mail sealed for others"
        yield setting.fault("notices", text, setting.to("resource, software"))


def delays_untold(flow: MailFlow) -> Iterator[PostfixFault]:
    """Mail waits for keys, the relay or the peer, while the sender believes that it has arrived."""
    setting, outgoing = flow.settings.of("delay_warning_time"), flow.side("outgoing")
    if outgoing is not None and (outgoing.ways or outgoing.by_milter) and not setting.seconds:
        given_up = flow.settings.value("maximal_queue_lifetime")
        text = f"the sender of mail that waits is told only when it is given up (maximal_queue_lifetime = {given_up})"
        yield setting.fault("delays-untold", text, setting.to("4h"))


def unknown_recipients(flow: MailFlow) -> Iterator[PostfixFault]:
    """Mail for unknown recipients is bounced, possibly to a peer whose address an outsider has forged."""
    settings = flow.settings
    text = "mail for recipients who do not exist is taken and bounced later: forged in a peer's name, that costs key"
    remedy = "name the table of those who exist, or add reject_unverified_recipient to smtpd_recipient_restrictions"
    takers = [each for each in flow.sources if each.command == "smtpd" and "incoming" in flow.leads_to(each)]
    for service in takers if flow.side("outgoing") is not None else ():
        restrictions = settings.of("smtpd_recipient_restrictions", service).words
        if "reject_unverified_recipient" in restrictions:
            continue
        unlisted = settings.of("smtpd_reject_unlisted_recipient", service)
        if unlisted.value == "no" and "reject_unlisted_recipient" not in restrictions:
            yield unlisted.fault("unknown-recipients", text, remedy)
        for domains, setting in CLASSES:
            if settings.value(domains, service) and not settings.value(setting, service):
                yield settings.of(setting, service).fault("unknown-recipients", text, remedy)


def sealed_too_large(flow: MailFlow) -> Iterator[PostfixFault]:
    """Postfix refuses the sealed form of a mail that the relay accepted."""
    outgoing = flow.side("outgoing")
    if outgoing is not None:
        needed: float = int(GROWTH * outgoing.direction.max_message_size)
        yield from _too_small(flow, outgoing, needed, "the sealed form of the largest mail that the relay takes")
    incoming = flow.side("incoming")
    if incoming is not None and incoming.filters:
        limits = [_limit(flow, source) for source in flow.sources]
        needed = min(max(limits, default=0), incoming.direction.max_message_size)
        yield from _too_small(flow, incoming, needed, "the largest mail that the relay was given")


def sealed_not_taken(flow: MailFlow) -> Iterator[PostfixFault]:
    """Postfix or the relay refuses mail that peers have sealed."""
    incoming, outgoing = flow.side("incoming"), flow.side("outgoing")
    if incoming is None:
        return
    usual: int = OutgoingSettings.model_fields["max_message_size"].default
    original = outgoing.direction.max_message_size if outgoing else usual  # the peers' limit is assumed to equal ours
    for source in flow.sources:
        if source.command != "smtpd" or "incoming" not in flow.leads_to(source):
            continue
        limit, setting = _limit(flow, source), flow.settings.of("message_size_limit", source)
        sealed = int(GROWTH * original)
        remedy = flow.settings.of("message_size_limit").to(sealed)
        if limit < ORDINARY:
            yield setting.fault("size-stops", "ordinary mail is refused, and the relay does not see it", remedy)
        elif limit < sealed:
            text = f"peers that take mail of {original} bytes seal it to {sealed}, which is refused"
            yield setting.fault("size-sealed-refused", text, remedy)
        if incoming.direction.max_message_size < limit < float("inf"):
            yield setting.fault(
                "size-relay-refuses",
                f"the relay's [incoming] takes {incoming.direction.max_message_size} bytes, and what is larger is "
                "bounced after Postfix has taken it",
                f"set max_message_size = {limit:.0f} in relay.toml, or a smaller message_size_limit",
            )


def mailboxes_too_small(flow: MailFlow) -> Iterator[PostfixFault]:
    """local(8) and virtual(8) deliver nothing if the mailbox limit is below the message limit."""
    mail = flow.settings.of("message_size_limit").number
    for mailbox in (flow.settings.of(name) for name in ("mailbox_size_limit", "virtual_mailbox_limit")):
        if 0 < mailbox.number < mail:
            text = f"it is below message_size_limit ({mail}), so nothing is delivered"
            yield mailbox.fault("size-mailbox", text, mailbox.to(0))


def bounces_not_header_alone(flow: MailFlow) -> Iterator[PostfixFault]:
    """Outsiders can cause bounces, and each byte of a sealed bounce may use a byte of key."""
    for service in flow.settings.services if flow.watched else ():
        setting = flow.settings.of("bounce_size_limit", service)
        if service.command == "bounce" and not 0 < setting.number <= HEADER_ALONE:
            text = "bounces quote whole mails: outsiders, who can cause them, spend more of the peers' keys"
            yield setting.fault("bounces-large", text, flow.settings.of("bounce_size_limit").to(1))


def _too_small(flow: MailFlow, side: RelayDirection, needed: float, text: str) -> Iterator[PostfixFault]:
    for service in side.reinjections:
        if _limit(flow, service) < needed:
            yield flow.settings.of("message_size_limit", service).fault(
                "size-back",
                f"too small for {text} ({needed:.0f} bytes), which is lost to a bounce",
                f"set message_size_limit={needed:.0f} or more",
            )


def _limit(flow: MailFlow, service: MasterService) -> float:
    """message_size_limit of a service, in bytes; infinite for 0."""
    return flow.settings.of("message_size_limit", service).number or float("inf")
