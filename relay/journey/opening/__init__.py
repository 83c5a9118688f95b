"""Opens mail sealed for this site, claims its recipients, and records who has it.
Standard: relay/FORMAT.md, the receiver's order; nothing is released before the last step.

layers.py opens; original.py prepares the original for delivery. This module decides who may have it: the sealed
envelope must fit what was opened, and names the recipients. All mailboxes are folded (relay/formats/mailbox.py).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial

import structlog

from relay.config import Config
from relay.counting import metrics
from relay.counting.board import Board
from relay.errors import (
    BadSignature,
    BadStructure,
    CannotOpen,
    KeyLost,
    KeyNotFound,
    MalformedMessage,
    NotAccepted,
    OutsideWindow,
    RelayError,
)
from relay.formats import cms, mime
from relay.formats.cms import SealedEnvelope
from relay.journey.opening.layers import Layer, Layers, OpenedLayers
from relay.keys import KeyReference
from relay.keys.types import by_origin
from relay.levels import OF_PADS
from relay.mail import Envelope, Mail, OpenedMail, Recipient, recipient_name, sealed_name
from relay.runtime.aio import off_loop
from relay.store.delivery_records import DeliveryRecords
from relay.store.received import OTP_KEEP_FOR_S, USED_KEEP_FOR_S, ReceivedKeys
from relay.store.received_table import KeyName, KeysUsed
from relay.store.restore_check import RestoreCheck

log = structlog.get_logger(__name__)

WINDOW = timedelta(days=7)
"""Time after sealing in which a message can be opened; IDs and keys of late recipients are kept as long."""
SKEW = timedelta(minutes=10)
"""Maximum clock skew between two sites."""
PATIENT_OCTETS = 2 * 2**20
"""Maximum size of a message that waits for lagging keys, in bytes, since it holds memory meanwhile."""
ENVELOPE_COSTS = 4
"""Cost of a byte of a sealed envelope, as a multiple of a byte of a message."""
RECIPIENT_OCTETS = 64
"""Cost of one recipient, in bytes, for the decision whether to use a thread."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The original message, byte for byte as it was sealed, what protected it, and who may have it.

    `protection` names the layers from the inside out; `peer` is the site that sealed it. The requested mailboxes are in
    four groups. Those `due` get it now, those `served` have it. Those `busy` are being served by another relay, and
    `strangers` are not named by the sealed envelope. `relay` is the owner of the claims. `config` was in force when it
    was opened, and applies to it to the end.
    """

    original: bytes = field(repr=False)
    protection: str
    peer: str
    keys: tuple[KeyReference, ...]
    envelope: SealedEnvelope
    config: Config = field(repr=False)
    arrived: OpenedMail | None = None
    due: tuple[str, ...] = field(default=(), repr=False)
    served: tuple[str, ...] = field(default=(), repr=False)
    busy: tuple[str, ...] = field(default=(), repr=False)
    strangers: tuple[str, ...] = field(default=(), repr=False)
    relay: str = ""

    @property
    def mail(self) -> bytes:
        """The name that all copies of it have in common."""
        return self.arrived.name if self.arrived is not None else b""

    @property
    def sealed(self) -> str:
        """Its name in log and audit record, at both sites."""
        return sealed_name(self.envelope.id, self.envelope.master_sae).hex()[:16]

    def name_in_store(self, mailbox: str) -> bytes:
        """The name of this recipient in the store."""
        return recipient_name(self.mail, mailbox)

    def to_the_due(self, mail: Mail) -> Mail:
        """`mail` to the due recipients, from the sealed sender: MAIL FROM, NOTIFY and RET can be forged.

        A success notice or a full bounce would disclose the content to an outsider. Whether SMTPUTF8 is needed depends
        on the sealed sender too (RFC 6531, 3.4).
        """
        due, sender = set(self.due), self.envelope.sender
        envelope = undisclosed(mail.to(each for each in mail.envelope.recipients if each.mailbox in due).envelope)
        utf8 = envelope.smtputf8 or not sender.isascii()
        return mail.changed(envelope=replace(envelope, sender=sender, smtputf8=utf8))


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class MailOpener:
    """Opens sealed messages; one value for the relay's lifetime. `clock` returns the receiver's time (aware).

    `layers` is called once for each mail; a reload applies to the next one.
    """

    layers: Callable[[], Layers]
    received: ReceivedKeys
    deliveries: DeliveryRecords
    restore_check: RestoreCheck | None = field(default=None, kw_only=True)
    board: Board = field(default_factory=Board, kw_only=True, repr=False)
    clock: Callable[[], datetime] = field(default=_utc_now, kw_only=True)

    async def open(
        self,
        message: bytes,
        mailboxes: Sequence[str] | None = None,
        *,
        max_hops: int = sys.maxsize,
        patient: bool = True,
        any_time: bool = False,
    ) -> Opened | None:
        """The original, or None if `message` is not sealed for us: ordinary mail, or sealed by others.

        `mailboxes` (folded) are the recipients; those `due` are claimed until `settle` or `give_up`; None claims
        nobody. An original with more than `max_hops` Received fields is in a loop. With `patient`, waits for keys that
        the KME does not have yet; with `any_time`, the age is not checked. Raises KeyUnavailable, StoreUnavailable or
        CannotOpen.
        """
        layers = self.layers()
        outermost = await layers.recognise(message, mailboxes or ())
        if outermost is None:
            return None
        return await self.open_recognised(
            layers, outermost, len(message), mailboxes, max_hops=max_hops, patient=patient, any_time=any_time
        )

    async def open_recognised(
        self,
        layers: Layers,
        outermost: Layer,
        size: int,
        mailboxes: Sequence[str] | None,
        *,
        max_hops: int,
        patient: bool,
        any_time: bool,
    ) -> Opened:
        """`open`, for a message of `size` bytes whose outermost layer was recognised by `layers`."""
        inner = OpenedLayers()
        try:
            try:
                patient = patient and size <= PATIENT_OCTETS
                entity = await layers.open(inner, outermost, size, patient=patient)
                any_time = any_time or mailboxes is None
                check = partial(self._envelope, layers.config, max_hops=max_hops, any_time=any_time)
                work = max(size, len(entity.content), ENVELOPE_COSTS * len(entity.envelope))
                envelope, named, strangers = await off_loop(work, check, inner, entity, mailboxes or ())
            except RelayError as error:
                # A valid tag binds the keys, even if the content is invalid: they open nothing else.
                await self.deliveries.admit(inner.bound)
                if isinstance(error, KeyNotFound):
                    error.claimed = inner.claimed
                    await self._check_not_lost(outermost, error)
                raise
            arrived = None
            if mailboxes is not None:  # stored until no copy could be opened any longer
                latest = (max(self.clock(), envelope.sealed_at) + WINDOW + SKEW).timestamp()
                arrived = OpenedMail(envelope.master_sae, envelope.id, inner.fingerprint, latest, named)
            # On disk before delivery. Otherwise another relay, or this one after a kill, could deliver it again, or
            # open another message under the same keys.
            with self.board.spread(metrics.STEP_SECONDS, "incoming", "admit").timed():
                begun = await self.deliveries.admit(inner.bound, arrived)
        except CannotOpen as error:
            # The same reply for all: else it would reveal who is named, or what is right about a forgery.
            error.silent, error.claimed = True, inner.claimed
            raise
        # No await from here to the end: a task cancelled later has the claims, and releases them.
        of = {
            state: tuple(box for box in named if arrived and begun.state(box) == state)
            for state in ("due", "served", "busy")
        }
        (peer,) = inner.peers
        return Opened(
            entity.content,
            inner.names,
            peer,
            tuple(inner.keys),
            envelope,
            layers.config,
            arrived,
            **of,
            strangers=strangers,
            relay=begun.relay,
        )

    async def _check_not_lost(self, outermost: Layer, error: KeyNotFound) -> None:
        """Raises KeyLost for an unknown key whose reply was lost with the process that requested it."""
        named = by_origin(outermost.references).items()
        names = [KeyName(group, master, each.key_ID) for (group, master), some in named for each in some]
        if names and await self.received.unanswered(names):
            raise KeyLost(f"{error}: the process that asked for it was killed before it had read the reply") from error

    async def settle(self, opened: Opened, has_it: Collection[str]) -> None:
        """Stores that these mailboxes have the mail, and releases the claims on the others.

        Called after the next hop's 250: earlier, a mail that was never sent would be taken for a duplicate. Failures
        are only logged, since the mail has left and an error would cause a retry. Once all named recipients have it,
        its keys are kept only as long as copies may still arrive.
        """
        if opened.arrived is None:
            return
        size = len(opened.envelope.recipients) * RECIPIENT_OCTETS
        had = set(has_it)
        try:
            named = await off_loop(size, _all_named, opened.config, opened.envelope)
            every = {name: None for names in named.values() for name in names}
            await self.deliveries.settle_opened(
                replace(opened.arrived, mailboxes=tuple(every)),
                has_it,
                [box for box in opened.due if box not in had],
                complete=partial(_all_have_it, named),
                used=self._used(opened),
            )
        except Exception as error:  # noqa: BLE001 - the mail has left; claims and keys end by themselves
            log.error("delivery_not_settled", cause=str(error), kind=type(error).__name__, delivered=len(has_it))

    def begin_to_settle(self, opened: Opened, has_it: Collection[str]) -> asyncio.Task[None]:
        """Starts `settle`, shielded from cancellation, without the original: its memory is no longer budgeted."""
        return self.received.later(self.settle(replace(opened, original=b""), has_it))

    async def give_up(self, opened: Opened) -> None:
        """Releases the claims, despite cancellation; the recipients may be retried at once."""
        await asyncio.shield(self.begin_to_settle(opened, ()))

    def _used(self, opened: Opened) -> list[KeysUsed]:
        """The keys to destroy once no recipient waits for this mail."""
        if opened.config.peers[opened.peer].key_max_messages > 1:
            return []  # other mails under the same key may have late recipients
        keep_for = OTP_KEEP_FOR_S if opened.protection in OF_PADS else USED_KEEP_FOR_S
        return [
            KeysUsed(group, master, tuple(each.key_ID for each in references), keep_for)
            for (group, master), references in by_origin(opened.keys).items()
        ]

    def _envelope(
        self,
        config: Config,
        layers: OpenedLayers,
        entity: mime.Entity,
        mailboxes: Sequence[str],
        *,
        max_hops: int,
        any_time: bool,
    ) -> tuple[SealedEnvelope, tuple[str, ...], tuple[str, ...]]:
        """The checked sealed envelope, and those of `mailboxes` that it names and that it does not.

        Raises CannotOpen.
        """
        envelope = _read_envelope(config, layers, entity.envelope)
        if not any_time:
            trusted_from = self.restore_check.trusted_from if self.restore_check is not None else float("-inf")
            _check_time(envelope.sealed_at, self.clock(), trusted_from)
        try:
            mime.check_carriable(entity.content, max_hops)
        except MalformedMessage as error:  # no mail server could have sent it
            raise BadStructure(f"the original: {error}") from error
        return envelope, *_partition(config, envelope, mailboxes)


def undisclosed(envelope: Envelope) -> Envelope:
    """The envelope for an opened mail: its sender hears no success, and no bounce quotes what is readable here.

    RFC 3461, 4.1 (NOTIFY) and 4.3 (RET=HDRS).
    """
    return replace(envelope, recipients=tuple(map(_without_success, envelope.recipients)), ret="HDRS")


def _without_success(recipient: Recipient) -> Recipient:
    """The recipient without SUCCESS in NOTIFY (RFC 3461, 4.1)."""
    if recipient.notify is None:
        return recipient
    conditions = [each for each in recipient.notify.upper().split(",") if each not in ("", "SUCCESS")]
    return replace(recipient, notify=",".join(conditions) or None)


def _read_envelope(config: Config, layers: OpenedLayers, der: bytes) -> SealedEnvelope:
    """The sealed envelope, which must fit what was opened. Raises CannotOpen."""
    if len(layers.peers) != 1:
        raise BadSignature(f"its layers come from different peers: {', '.join(sorted(layers.peers))}")
    (name,) = layers.peers
    peer = config.peers[name]
    if layers.protection[0] not in peer.accept:
        raise NotAccepted(f"sealed at level {layers.protection[0]}, which peer {name!r} may not use (`accept`)")
    domains = (*peer.domains, *peer.forwards)
    return cms.read_sealed_envelope(der, cms.Ends(name, peer.sae_id, config.site.sae_id, layers.names, domains))


def _check_time(sealed_at: datetime, now: datetime, trusted_from: float) -> None:
    """Raises OutsideWindow. The store is complete from `trusted_from` (Unix time) on."""
    if sealed_at < now - WINDOW:
        raise OutsideWindow(f"sealed at {sealed_at:%Y-%m-%d %H:%M:%S} UTC, more than {WINDOW.days} days ago")
    if sealed_at > now + SKEW:
        raise OutsideWindow(f"sealed at {sealed_at:%Y-%m-%d %H:%M:%S} UTC, which is still to come; check both clocks")
    if sealed_at.timestamp() < trusted_from:
        raise OutsideWindow("sealed before this site's store was restored, which may have forgotten it")


def _all_named(config: Config, envelope: SealedEnvelope) -> dict[str, tuple[str, ...]]:
    """The addresses of each recipient: their own first, then their aliases here."""
    return {recipient: (recipient, *config.aliases.get(recipient, ())) for recipient in envelope.recipients}


def _partition(
    config: Config, envelope: SealedEnvelope, mailboxes: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The mailboxes that the sealed envelope names, aliases of this site included, and the others."""
    allowed = {each for names in _all_named(config, envelope).values() for each in names}
    once = dict.fromkeys(mailboxes)
    return tuple([box for box in once if box in allowed]), tuple([box for box in once if box not in allowed])


def _all_have_it(named: dict[str, tuple[str, ...]], served: set[str]) -> bool:
    """Whether each recipient of `_all_named` has the mail, directly or at all their aliases."""
    return all(
        recipient in served or (bool(aliases) and served.issuperset(aliases)) for recipient, *aliases in named.values()
    )
