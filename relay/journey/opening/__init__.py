"""Opens what is sealed for this site, claims those who are to get it, and notes who has it.
Standard: relay/FORMAT.md, the receiver's order; nothing is released before the last step.

layers.py opens; original.py makes of that what is handed on. Who may have it is decided here: the sealed envelope has
to fit what was opened, and names the recipients. All mailboxes are in their one spelling (relay/formats/mailbox.py).
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
"""Time after sealing in which a message opens; IDs are remembered, and keys wait for late recipients, as long."""
SKEW = timedelta(minutes=10)
"""Maximum clock skew between two sites."""
PATIENT_OCTETS = 2 * 2**20
"""Maximum size of a message that waits for lagging keys, in bytes: meanwhile it takes memory from others."""
ENVELOPE_COSTS = 4
"""Cost of a byte of a sealed envelope, as a multiple of one of a message: a few may be an address."""
RECIPIENT_OCTETS = 64
"""Cost of one recipient, in bytes, where it is decided whether work is done in a thread."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The original message, byte for byte as it was sealed, what protected it, and who may have it.

    `protection` names the layers from the inside out; `peer` is the site that sealed it. The mailboxes that were asked
    about are in four groups. Those that are `due` get it now, and those that are `served` have it. Those that are
    `busy` get it from another relay now, and `strangers` are not named by the sealed envelope. `relay` is the name
    under which those that are due are claimed. `config` was in force when it was opened, and holds for it to the end.
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
        """What all copies of it have in common."""
        return self.arrived.name if self.arrived is not None else b""

    @property
    def sealed(self) -> str:
        """What log and audit record call it, here and where it was sealed."""
        return sealed_name(self.envelope.id, self.envelope.master_sae).hex()[:16]

    def name_in_store(self, mailbox: str) -> bytes:
        """What the store calls this recipient of it."""
        return recipient_name(self.mail, mailbox)

    def to_the_due(self, mail: Mail) -> Mail:
        """`mail` to those who get it now, from the sealed sender: what MAIL FROM, NOTIFY and RET say can be forged.

        An outsider who could ask for a notice of success, or for a bounce in full, would get what was sealed. Nor does
        what MAIL FROM said show whether the sealed sender needs SMTPUTF8 (RFC 6531, 3.4).
        """
        envelope, due = mail.envelope, set(self.due)
        to = tuple([_without_success(each) for each in envelope.recipients if each.mailbox in due])
        sender = self.envelope.sender
        utf8 = envelope.smtputf8 or not sender.isascii()
        # RET=HDRS (RFC 3461, 4.3): a bounce of what was readable here quotes no content.
        return mail.changed(envelope=Envelope(sender, to, utf8, "HDRS", envelope.envid))


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class MailOpener:
    """Opens sealed messages; one value for the life of the relay. `clock` gives the receiver's time (aware).

    `layers` gives what opens layers, asked once for each mail: what is read again meanwhile counts for the next one.
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
        sender: str = "",
        mailboxes: Sequence[str] | None = None,
        *,
        max_hops: int = sys.maxsize,
        patient: bool = True,
        any_time: bool = False,
    ) -> Opened | None:
        """The original, or None where `message` is not sealed for us: ordinary mail, or sealed by others.

        `sender`, that of the SMTP envelope, only decides whether a message that we cannot read was meant for us.
        `mailboxes`, in their one spelling (Recipient.mailbox), want the mail: those who are `due` are claimed until
        `settle` or `give_up`; None claims nobody. An original with more than `max_hops` Received fields is in a loop.
        With `patient`, keys that its KME does not know yet are waited for; with `any_time` a person answers for its
        age. Raises KeyUnavailable, StoreUnavailable or CannotOpen.
        """
        layers = self.layers()
        outermost = await layers.recognise(message, sender)
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
        """`open`, for a message of `size` bytes whose outermost layer `layers` have recognised."""
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
                # What a right tag has shown holds, whatever is wrong inside: nothing else opens under these keys.
                await self.deliveries.admit(inner.bound)
                if isinstance(error, KeyNotFound):
                    error.claimed = inner.claimed
                    await self._check_not_lost(outermost, error)
                raise
            arrived = None
            if mailboxes is not None:  # what the store remembers, until no copy could be opened any longer
                latest = (max(self.clock(), envelope.sealed_at) + WINDOW + SKEW).timestamp()
                arrived = OpenedMail(envelope.master_sae, envelope.id, inner.fingerprint, latest, named)
            # On the disk before anybody gets the original. Otherwise another relay, or this one after a kill, would
            # hand it on once more, or open another message under the same keys.
            with self.board.spread(metrics.STEP_SECONDS, "incoming", "admit").timed():
                begun = await self.deliveries.admit(inner.bound, arrived)
        except CannotOpen as error:
            # All are answered alike: else answers would reveal who is named, or what is right about a forgery.
            error.silent, error.claimed = True, inner.claimed
            raise
        # From here to the end there is no await: a task cancelled later has what was claimed, and gives it up.
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
        """Raises KeyLost where a key that no KME knows was asked for when all processes of a relay were killed."""
        named = by_origin(outermost.references).items()
        names = [KeyName(group, master, each.key_ID) for (group, master), some in named for each in some]
        if names and await self.received.unanswered(names):
            raise KeyLost(f"{error}: it was given away while all processes of the relay were killed") from error

    async def settle(self, opened: Opened, has_it: Collection[str]) -> None:
        """These mailboxes have the mail; others who were due have it not, and may try again at once.

        To be called once the next hop has said 250: noted before, a mail that was never sent would be taken for a copy.
        Whatever fails is only logged, for the mail has left, and who hears of a failure sends it again. Once all whom
        the sealed envelope names have it, its keys are kept only for as long as copies may still come.
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
        """`settle`, which finishes despite cancellation, without the original: nobody counts its memory any longer."""
        return self.received.later(self.settle(replace(opened, original=b""), has_it))

    async def give_up(self, opened: Opened) -> None:
        """Releases the claimed recipients, who may be retried at once, despite cancellation."""
        await asyncio.shield(self.begin_to_settle(opened, ()))

    def _used(self, opened: Opened) -> list[KeysUsed]:
        """The keys that are destroyed soon, once nobody waits for this mail any longer."""
        if opened.config.peers[opened.peer].key_max_messages > 1:
            return []  # other mails, with recipients who may come late, are under the same key
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
        """The sealed envelope, once it and the original are as they must be, and of `mailboxes` whom it names, or not.

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
        return envelope, *_told_apart(config, envelope, mailboxes)


def _without_success(recipient: Recipient) -> Recipient:
    """The recipient with NOTIFY (RFC 3461, 4.1) that asks for no notice of success."""
    if recipient.notify is None:
        return recipient
    conditions = [each for each in recipient.notify.upper().split(",") if each not in ("", "SUCCESS")]
    return replace(recipient, notify=",".join(conditions) or None)


def _read_envelope(config: Config, layers: OpenedLayers, der: bytes) -> SealedEnvelope:
    """The sealed envelope, once it fits what was opened. Raises CannotOpen."""
    if len(layers.peers) != 1:
        raise BadSignature(f"its layers come from different peers: {', '.join(sorted(layers.peers))}")
    (name,) = layers.peers
    peer = config.peers[name]
    if layers.protection[0] not in peer.accept:
        raise NotAccepted(f"sealed at level {layers.protection[0]}, which peer {name!r} may not use (`accept`)")
    domains = (*peer.domains, *peer.forwards)
    return cms.read_sealed_envelope(der, cms.Ends(name, peer.sae_id, config.site.sae_id, layers.names, domains))


def _check_time(sealed_at: datetime, now: datetime, trusted_from: float) -> None:
    """Raises OutsideWindow; from `trusted_from` on, seconds since 1970, the store remembers what was opened."""
    if sealed_at < now - WINDOW:
        raise OutsideWindow(f"sealed at {sealed_at:%Y-%m-%d %H:%M:%S} UTC, more than {WINDOW.days} days ago")
    if sealed_at > now + SKEW:
        raise OutsideWindow(f"sealed at {sealed_at:%Y-%m-%d %H:%M:%S} UTC, which is still to come; check both clocks")
    if sealed_at.timestamp() < trusted_from:
        raise OutsideWindow("sealed before this site's store was restored, which may have forgotten it")


def _all_named(config: Config, envelope: SealedEnvelope) -> dict[str, tuple[str, ...]]:
    """By recipient, whom their mail may arrive for: themselves first, then their aliases here."""
    return {recipient: (recipient, *config.aliases.get(recipient, ())) for recipient in envelope.recipients}


def _told_apart(
    config: Config, envelope: SealedEnvelope, mailboxes: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those of the mailboxes that the sealed envelope names, by this site's aliases too, and the others."""
    allowed = {each for names in _all_named(config, envelope).values() for each in names}
    once = dict.fromkeys(mailboxes)
    return tuple([box for box in once if box in allowed]), tuple([box for box in once if box not in allowed])


def _all_have_it(named: dict[str, tuple[str, ...]], served: set[str]) -> bool:
    """Whether each recipient of `_all_named` has the mail, themselves or by all their aliases."""
    return all(
        recipient in served or (bool(aliases) and served.issuperset(aliases)) for recipient, *aliases in named.values()
    )
