"""Decides about incoming mail that cannot be delivered: hold, refuse, or quarantine and notify.
Quarantined mail is on disk when these methods return, before the 250 reply; notices follow RFC 3834.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import policy
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid

import structlog

from relay.config import Config, SiteSettings
from relay.counting import metrics
from relay.counting.board import Board
from relay.errors import BadStructure, CannotOpen, KeyNotFound, PolicyRefuses, QuarantineFull, StoreUnavailable
from relay.formats import mime
from relay.forward import NextHop
from relay.mail import Envelope, Mail, Recipient, domain_of
from relay.policy.names import printable
from relay.quarantine import REASONS, reason_of, reason_text
from relay.runtime.aio import off_loop
from relay.store.quarantine import Room, Total
from relay.store.quarantine_table import Arrival
from relay.store.store import Store

log = structlog.get_logger(__name__)

SHARES = 2
"""Number of shares of the quarantine; a party (a peer, or all other senders) may use one share."""
MAX_CAUSE = 1000
TOO_LATE: frozenset[str] = frozenset({"expired", "destroyed", "key-lost", "outside-window"})
"""Reasons of correctly sealed mail that arrived too late to be opened."""
PATIENCE_S = 10.0
"""Timeout of all notices about one mail, in seconds; its reply waits for them."""

_TEXT = """\
A message for you was put aside by the mail gateway of {site} and was not delivered.

    Sender (as stated, not verified):  {sender}
    Arrived:                           {when}
    Reason:                            {reason}. {why}
    Number:                            {id}

Nothing of it is lost. Please ask {contact}, and give the number; do not trust a
message that asks you for anything because of this one.
"""


@dataclass(frozen=True, slots=True)
class Triage:
    """The parts used; one value for the relay's lifetime. Without `notices` recipients are not notified.

    Reasons, never addresses, are counted on the `board`. `known` returns the configuration with the current peers.
    """

    config: Config
    known: Callable[[], Config]
    store: Store
    board: Board = field(default_factory=Board)
    notices: Notices | None = None

    async def cannot_open(self, mail: Mail, error: CannotOpen | KeyNotFound) -> None:
        """Quarantines the mail as received.

        Raises `error` if the mail is to be held or refused, and QuarantineFull or StoreUnavailable. Mail is never
        refused after its keys were used: the reply would reveal what is right about it.
        """
        if self.config.quarantine.action == "refuse" and not (isinstance(error, CannotOpen) and error.silent):
            raise error
        key = await off_loop(mime.work(mail.message), identity, mail)
        if isinstance(error, KeyNotFound) and await self._may_still_come(key):
            self.board.add(metrics.QUARANTINE_LAG)
            raise error
        party = self._party(mail)
        named = error.claimed or party
        arrival = Arrival(mail, reason_of(error), _cause(error), party, mail.message, named=named)
        await self._put(key, arrival, reason_of(error))

    async def unprotected(self, leaving: Mail, protection: str, peer: str, cause: str) -> None:
        """Quarantines the mail as it would have been delivered.

        It has an identity of its own. What was opened for some is released to no others who got the sealed mail.
        `protection` and `peer` are "" for unsealed mail. Raises PolicyRefuses if unsealed mail is not kept, and
        QuarantineFull or StoreUnavailable.
        """
        if self.config.quarantine.action == "refuse" and not protection:
            raise PolicyRefuses(cause)
        key = await off_loop(mime.work(leaving.message), identity, leaving)
        party, stored = self._party(leaving), leaving.trace + leaving.message
        arrival = Arrival(leaving, "unprotected", _cause(cause), party, stored, protection, peer, peer or party)
        await self._put(key, arrival, "unprotected")

    async def waits_for_key(self, mail: Mail) -> bool:
        """Whether a mail with an unknown key is to be held, since the key may be late. Raises StoreUnavailable."""
        return await self._may_still_come(await off_loop(mime.work(mail.message), identity, mail))

    async def refresh(self) -> None:
        """Updates the gauges, and expires waiting times."""
        await self._show()
        self.board.set(metrics.QUARANTINE_LIMIT, to=self.config.quarantine.max_size)
        await self.store.first_seen.expire()

    async def _show(self) -> None:
        _show(self.board, await self.store.quarantine.totals(), self.known().peers)

    async def _may_still_come(self, key: bytes) -> bool:
        """Whether the key of this mail may still arrive; no for mail already in quarantine."""
        if await self.store.quarantine.has(key):
            return False
        return await self.store.first_seen.waits_for(key) < self.config.quarantine.hold_for

    async def _put(self, key: bytes, arrival: Arrival, reason: str) -> None:
        total = self.config.quarantine.max_size
        try:
            put = await self.store.quarantine.put(key, arrival, Room(total, total // SHARES))
        except QuarantineFull as error:
            self.board.add(metrics.QUARANTINE_FULL)
            log.error("quarantine_full", reason=reason, cause=f"{error}; see `qumail-relay quarantine list`")
            raise
        self.board.add(metrics.QUARANTINE_PUT, reason, "no" if put.new else "yes")
        if put.new:
            with suppress(StoreUnavailable):  # it is quarantined; the page is updated later
                await self._show()
        # Its sender got a 250 and a recipient no mail: without a notice that would go unnoticed.
        report = log.error if reason in TOO_LATE and put.recipients else log.warning
        report(
            "put_in_quarantine",
            id=put.id,
            reason=reason,
            cause=arrival.cause,
            again=not put.new,
            recipients=len(put.recipients),
            octets=len(arrival.stored),
        )
        # A redirected mail must not cause a notice of ours to its new recipient.
        if self.notices is not None and arrival.party and put.recipients and reason != "redirected":
            await self.notices.send(arrival.mail, put.id, reason, put.recipients)

    def _party(self, mail: Mail) -> str:
        """The peer of the sender's domain, or "": its share is charged, and notices are sent for it.

        The sealed layers may name another peer, as for a bounce, but mail servers only check the sender.
        """
        peer = self.known().peer_by_domain(domain_of(mail.envelope.sender))
        return peer[0] if peer is not None else ""


def identity(mail: Mail) -> bytes:
    """A digest (32 bytes) that all copies of a mail share; of a sealed one, the digest of its CMS.

    Whether a sealed mail can be opened only depends on its CMS, so no forged copy can replace a valid one.
    """
    kind, content = mail.envelope.sender.encode("utf-8", "surrogateescape"), mail.message
    if mime.is_sealed(mail.message):
        with suppress(BadStructure):
            kind, content = b"\0sealed", mime.sealed_content(mail.message)
    digest = hashlib.sha256(kind + b"\0")
    digest.update(content)
    return digest.digest()


def let_out_name(mail: bytes) -> bytes:
    """The store's name for a mail with this identity that was released unopened."""
    return hashlib.sha256(b"let out\0" + mail).digest()


def _cause(cause: object) -> str:
    """The cause, bounded and printable: a part of it may come from hostile mail."""
    return printable(str(cause))[:MAX_CAUSE]


@dataclass(frozen=True, slots=True)
class Notices:
    """Notifies recipients, through the next hop of incoming mail, that a message was quarantined; quotes nothing of it.

    Once for each message and recipient (RFC 3834: Auto-Submitted, null reverse-path).
    """

    site: SiteSettings
    next_hop: NextHop
    board: Board

    async def send(self, mail: Mail, name: str, reason: str, recipients: Sequence[Recipient]) -> None:
        """Sends a notice to each of these recipients of `mail`, kept as `name`. Never raises; failures are logged."""
        sent = 0
        try:
            async with asyncio.timeout(PATIENCE_S):
                for recipient in recipients:
                    sent += await self._sent(mail, name, reason, recipient)
        except TimeoutError:
            log.warning("notice_not_sent", id=name, cause=f"not within {PATIENCE_S:.0f} s")
        self.board.add(metrics.QUARANTINE_NOTICES, "sent", by=sent)
        self.board.add(metrics.QUARANTINE_NOTICES, "failed", by=len(recipients) - sent)

    async def _sent(self, mail: Mail, name: str, reason: str, recipient: Recipient) -> bool:
        """Sends one notice; returns whether the next hop accepted it."""
        try:
            handed = await self.next_hop.deliver(self._notice(mail, name, reason, recipient))
        except Exception as error:  # noqa: BLE001 - the mail is stored
            log.warning("notice_not_sent", id=name, cause=f"{type(error).__name__}: {error}")
            return False
        return handed.outcomes[0] is None

    def _notice(self, mail: Mail, name: str, reason: str, recipient: Recipient) -> Mail:
        contact = f"postmaster@{self.site.domains[0]}"
        now = datetime.now(UTC)
        message = EmailMessage(policy=policy.SMTPUTF8 if mail.envelope.smtputf8 else policy.SMTP)
        message["From"] = contact
        message["To"] = recipient.address
        message["Subject"] = "A message for you was put aside"
        message["Date"] = format_datetime(now)
        message["Message-ID"] = make_msgid(domain=self.site.hostname)
        message["Auto-Submitted"] = "auto-generated"
        text = _TEXT.format(
            site=self.site.name,
            sender=printable(mail.envelope.sender)[:254],
            when=now.strftime("%Y-%m-%d %H:%M UTC"),
            reason=reason,
            why=reason_text(reason),
            id=name,
            contact=contact,
        )
        message.set_content(text, cte="quoted-printable")
        envelope = Envelope("", (Recipient(recipient.address, notify="NEVER"),), smtputf8=mail.envelope.smtputf8)
        return Mail(envelope, message.as_bytes())


def _show(board: Board, totals: Mapping[tuple[str, str, str], Total], peers: Iterable[str]) -> None:
    """Sets the gauges, by peer; former peers count as "other"."""
    shown = {"", *peers}
    numbers = Counter({(reason, peer): 0 for reason in REASONS for peer in shown})
    for (reason, _, named), total in totals.items():
        numbers[reason, named if named in shown else ""] += total.number
    for labels, number in numbers.items():
        board.set(metrics.QUARANTINE_MESSAGES, *labels, to=number)
    board.set(metrics.QUARANTINE_BYTES, to=sum(total.size for total in totals.values()))
