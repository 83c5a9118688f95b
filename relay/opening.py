"""Opens what is sealed for this site, layer by layer, and finds out who may have it.
Standard: relay/FORMAT.md, the receiver's order; nothing is released before the last step.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Literal

import structlog

from relay import cms, mime
from relay.cms import KeyUse, SealedEnvelope
from relay.config import Config
from relay.errors import (
    BadSignature,
    BadStructure,
    CannotOpen,
    KeyNotFound,
    KeyUsed,
    MalformedMessage,
    NotAccepted,
    NotNamed,
    OutsideWindow,
    RelayError,
    UnknownPeer,
)
from relay.keys import Key, KeyReference
from relay.keys.ring import KeyRing
from relay.levels import Level, Opening, Unsealed
from relay.levels.content import off_loop
from relay.levels.signatures import names, signs_under
from relay.mail import Mail, Recipient, domain_of
from relay.policy import Content, author
from relay.policy.names import fold_domain
from relay.store import OTP_KEEP_FOR_S, USED_KEEP_FOR_S, Arrived, Beat, Bound, Openings, ReceivedKeys, SentOpened

if TYPE_CHECKING:
    from relay.identity import Identity, PeerCertificates

log = structlog.get_logger(__name__)

PATIENT_OCTETS = 2 * 2**20
"""A larger message does not wait for keys that lag, for as long as it waits it takes memory from others."""
MAX_LAYERS = 2 + len(cms.FURTHER_KEMS)
ASKED_FIRST = 128
"""So many keys are asked for at first: anybody can send a mail that names thousands which do not exist."""
RECIPIENT_OCTETS = 64
"""What one recipient counts where it is decided whether work is done beside the loop."""
WINDOW = timedelta(days=7)
"""A message opens for so long after it was sealed; so long ids are remembered, and keys wait for late recipients."""
SKEW = timedelta(minutes=10)
"""So far the two sites' clocks may be apart."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The original message, octet for octet as it was sealed, what protected it, and who may have it.

    `protection` names the layers from the inside out; `peer` is the site that sealed it, and `author` tells whether the
    From field is of that peer's domains. Of the mailboxes that were asked about, `due` get it now; `served` have it,
    `busy` get it from another relay at this moment, and `strangers` are not named by the sealed envelope.
    """

    original: bytes = field(repr=False)
    protection: str
    peer: str
    keys: tuple[KeyReference, ...]
    envelope: SealedEnvelope
    author: Literal["peer", "other"] = "other"
    arrived: Arrived | None = None
    due: tuple[str, ...] = field(default=(), repr=False)
    served: tuple[str, ...] = field(default=(), repr=False)
    busy: tuple[str, ...] = field(default=(), repr=False)
    strangers: tuple[str, ...] = field(default=(), repr=False)

    @property
    def mail(self) -> bytes:
        """What all copies of it have in common."""
        return self.arrived.mail if self.arrived is not None else b""

    def in_store(self, recipients: Iterable[Recipient]) -> SentOpened | None:
        """What the store calls the mail and these recipients of it."""
        if self.arrived is None:
            return None
        return self.mail, [self.arrived.recipient(_folded_mailbox(each.mailbox)) for each in recipients]

    def to_the_due(self, mail: Mail) -> Mail:
        """`mail` to those who get it now, from the sealed sender: what MAIL FROM and NOTIFY say can be forged.

        An outsider who could ask for a notice of success would get the original's header.
        """
        due = set(self.due)
        recipients = tuple(_without_success(each) for each in mail.envelope.recipients if each.mailbox in due)
        return replace(mail, envelope=replace(mail.envelope, sender=self.envelope.sender, recipients=recipients))


@dataclass(slots=True)
class _Layers:
    """What was found on the way inwards."""

    protection: list[str] = field(default_factory=list)
    peers: set[str] = field(default_factory=set)
    keys: list[KeyReference] = field(default_factory=list)
    bound: list[Bound] = field(default_factory=list)
    fingerprint: bytes = b""

    @property
    def names(self) -> str:
        """The layers from the inside out, as `pqc+aes`."""
        return "+".join(self.protection)


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens sealed messages; one value for the life of the relay.

    `certificates` are the peers' by peer name, `clock` gives the receiver's time (aware).
    """

    config: Config
    levels: Mapping[str, Level]
    keys: KeyRing
    received: ReceivedKeys
    openings: Openings
    identity: Identity | None = None
    certificates: Mapping[str, PeerCertificates] = field(default_factory=dict)
    beat: Beat | None = field(default=None, kw_only=True)
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

        `sender`, that of the SMTP envelope, only tells whether a message that we cannot read was meant for us.
        `mailboxes` want the mail: those who are `due` are claimed until `settle` or `give_up`; None claims nobody. An
        original with more than `max_hops` Received fields is in a loop. With `patient`, keys that its KME does not know
        yet are waited for; with `any_time` a person answers for its age. Raises KeyUnavailable, StoreUnavailable or
        CannotOpen.
        """
        if not await off_loop(len(message), mime.is_sealed, message):
            return None
        try:
            enveloped = await off_loop(len(message), _enveloped, message)
            level = self._level(enveloped)
            if not self._for_us(level, enveloped):
                return None
        except BadStructure:
            if self.config.peer_by_domain(domain_of(sender)) is not None:
                raise
            return None
        layers = _Layers(fingerprint=await off_loop(len(message), enveloped.fingerprint))
        try:
            may_wait = patient and len(message) <= PATIENT_OCTETS
            entity = await self._open_layers(layers, enveloped, len(message), may_wait)
            with _silent():
                check = partial(self._envelope, any_time=any_time or mailboxes is None)
                envelope = await off_loop(len(message), check, layers, entity)
                await off_loop(len(message), _check_carriable, entity.content, max_hops)
        except RelayError:
            # What a right tag has shown holds, whatever is wrong inside: no other ciphertext opens under these keys.
            with _silent():
                await self.openings.admit(layers.bound)
            raise
        whose = await off_loop(
            len(message), author, Content(entity.content), self.config.peers[min(layers.peers)].domains
        )
        named, strangers = await off_loop(len(message), self._named, envelope, mailboxes or ())
        arrived = _arrived(layers, envelope, named, self.clock()) if mailboxes is not None else None
        with _silent():
            states = await self.openings.admit(layers.bound, arrived)
        # From here to the end there is no await: whoever is cancelled later has what was claimed, and gives it up.
        of = {
            state: tuple(box for box in named if states.get(_folded_mailbox(box)) == state)
            for state in ("due", "served", "busy")
        }
        return Opened(
            entity.content,
            layers.names,
            min(layers.peers),
            tuple(layers.keys),
            envelope,
            whose,
            arrived,
            **of,
            strangers=strangers,
        )

    async def settle(self, opened: Opened, delivered: Iterable[str], not_delivered: Iterable[str] = ()) -> None:
        """These mailboxes have the mail, or do not have it after all. Raises StoreUnavailable.

        Once all whom the sealed envelope names have it, its keys are kept only for as long as copies may still come.
        """
        if opened.arrived is None:
            return
        size = len(opened.envelope.recipients) * RECIPIENT_OCTETS
        named = await off_loop(size, self._all_named, opened.envelope)
        every = {name: None for names_ in named.values() for name in names_}
        arrived = replace(opened.arrived, mailboxes=tuple(every))
        served = await self.openings.settle(
            arrived, map(_folded_mailbox, delivered), map(_folded_mailbox, not_delivered)
        )
        if all(_has_it(names_, served) for names_ in named.values()):
            await self.done(opened)

    async def give_up(self, opened: Opened) -> None:
        """Nobody gets the mail now: those who were claimed may try again at once, whoever is cancelled meanwhile."""
        await asyncio.shield(self.received.later(self._given_up(replace(opened, original=b""))))

    async def _given_up(self, opened: Opened) -> None:
        try:
            await self.settle(opened, (), opened.due)
        except RelayError as error:  # the claims end by themselves
            log.warning("claims_not_given_up", cause=str(error), kind=type(error).__name__)

    async def done(self, opened: Opened) -> None:
        """Nobody waits for this mail any more: its keys are destroyed soon. Raises StoreUnavailable."""
        if self.config.peers[opened.peer].key_max_messages > 1:
            return  # other mails, with recipients who may come late, are under the same key
        keep_for = OTP_KEEP_FOR_S if opened.protection == "otp" else USED_KEEP_FOR_S
        for (group, master), references in _by_origin(opened.keys).items():
            await self.received.mark_used(group, master, [each.key_ID for each in references], keep_for)

    async def _open_layers(
        self, layers: _Layers, enveloped: cms.AuthEnveloped, size: int, patient: bool
    ) -> mime.Entity:
        """The payload of the innermost layer; `size` is that of the message in octets."""
        level = self._level(enveloped)
        references = await off_loop(size, self._references, level, enveloped)
        with _silent():
            while True:
                layers.protection.insert(0, level.name)
                unsealed = await self._unsealed(layers, level, enveloped, references, patient)
                entity = await off_loop(size, mime.unwrap, unsealed.payload)
                if entity.kind == "message" and level.name not in cms.FURTHER_KEMS:
                    _check_innermost(level, layers)
                    return entity
                if entity.kind != "enveloped" or level.name not in _AROUND or len(layers.protection) == MAX_LAYERS:
                    raise BadStructure(f"{entity.kind} data inside a layer of {level.name}")
                enveloped = await off_loop(len(entity.content), cms.decode_enveloped, entity.content)
                outer, level = level, self._level(enveloped)
                _check_order(outer, level, layers.protection)
                references = await off_loop(size, self._references, level, enveloped)

    async def _unsealed(
        self,
        layers: _Layers,
        level: Level,
        enveloped: cms.AuthEnveloped,
        references: list[KeyReference],
        patient: bool,
    ) -> Unsealed:
        """One layer, opened and verified; what its tag has shown is noted even where something else is wrong."""
        use = self._use(level, enveloped, references) if references else None
        keys = await self._keys(references, use, patient)
        verified: list[bool] = []
        try:
            unsealed = await level.open(
                enveloped, Opening(keys, self.identity, self._signers, verified=lambda: verified.append(True))
            )
        finally:
            if verified and use is not None:
                layers.keys += references
                layers.bound += [
                    Bound(group, master, tuple(each.key_ID for each in some), use)
                    for (group, master), some in _by_origin(references).items()
                ]
        layers.peers |= self._peers(references, unsealed)
        return unsealed

    def _use(self, level: Level, enveloped: cms.AuthEnveloped, references: list[KeyReference]) -> KeyUse:
        """What these keys are to open; a key of a pad never opens two messages, whatever is set."""
        peer = self.config.peer_by_sae(references[0].master_sae or "")
        most = peer[1].key_max_messages if peer is not None and level.name == "aes" else 1
        return KeyUse(level.name, enveloped.fingerprint(), most)

    def _envelope(self, layers: _Layers, entity: mime.Entity, *, any_time: bool) -> SealedEnvelope:
        """The sealed envelope, once it fits what was opened. Raises CannotOpen."""
        if len(layers.peers) != 1:
            raise BadSignature(f"its layers come from different peers: {', '.join(sorted(layers.peers))}")
        (name,) = layers.peers
        peer = self.config.peers[name]
        if layers.protection[0] not in peer.accept:
            raise NotAccepted(f"sealed at level {layers.protection[0]}, which peer {name!r} may not use (`accept`)")
        envelope = cms.decode_sealed_envelope(entity.envelope)
        if len(set(map(_folded_mailbox, envelope.recipients))) != len(envelope.recipients):
            raise BadStructure("the sealed envelope names one recipient twice")
        for said, found, what in (
            (envelope.master_sae, peer.sae_id, "the SAE that sealed"),
            (envelope.slave_sae, self.config.site.sae_id, "the SAE that opens"),
            (envelope.layers, layers.names, "the layers"),
        ):
            if said != found:
                raise NotNamed(f"the sealed envelope names {said!r} as {what}, and it is {found!r}")
        domains = {_folded(each) for each in (*peer.domains, *peer.forwards) if each != "*"}
        domain = _folded(domain_of(envelope.sender))
        if envelope.sender and domain not in domains and "*" not in peer.forwards:
            raise NotNamed(f"peer {name!r} sealed it for a sender of another domain; see `forwards`")
        if not any_time:
            _check_time(envelope.sealed_at, self.clock())
            if self.beat is not None and envelope.sealed_at.timestamp() < self.beat.trusted_from:
                raise OutsideWindow("sealed before this site's store was restored, which may have forgotten it")
        return envelope

    def _named(self, envelope: SealedEnvelope, mailboxes: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Those of the mailboxes that the sealed envelope names, by this site's aliases too, and the others."""
        allowed = {name for names_ in self._all_named(envelope).values() for name in names_}
        told = {box: _folded_mailbox(box) in allowed for box in mailboxes}
        return tuple(box for box, named in told.items() if named), tuple(
            box for box, named in told.items() if not named
        )

    def _all_named(self, envelope: SealedEnvelope) -> dict[str, tuple[str, ...]]:
        """By recipient, whom their mail may arrive for: themselves first, then their aliases here; all folded."""
        table = {_folded_mailbox(each): tuple(map(_folded_mailbox, to)) for each, to in self.config.aliases.items()}
        folded = map(_folded_mailbox, envelope.recipients)
        return {recipient: (recipient, *table.get(recipient, ())) for recipient in folded}

    def _level(self, enveloped: cms.AuthEnveloped) -> Level:
        for level in self.levels.values():
            if level.recognises(enveloped):
                return level
        raise BadStructure("no level seals for this mixture of recipients")

    def _for_us(self, level: Level, enveloped: cms.AuthEnveloped) -> bool:
        """Whether a message is between a peer and us, rather than one that people sealed for each other."""
        if not level.quantum:
            return self.identity is not None and any(
                _is_for(self.identity, recipient)
                for recipient in enveloped.recipients
                if isinstance(recipient, cms.KEMRecipient | cms.RSARecipient)
            )
        return bool(level.references(enveloped))

    def _references(self, level: Level, enveloped: cms.AuthEnveloped) -> list[KeyReference]:
        """The keys that the message names, after a check against peers, groups and levels. No key is fetched before."""
        references = list(level.references(enveloped))
        for reference in references:
            self._check(level, reference)
        return references

    def _check(self, level: Level, reference: KeyReference) -> None:
        known = self.config.peer_by_sae(reference.master_sae or "")
        if known is None:
            raise UnknownPeer(
                f"key {reference.key_ID}: sealed by SAE {reference.master_sae!r}, which is no peer of ours"
            )
        name, peer = known
        if reference.slave_sae != self.config.site.sae_id:
            raise UnknownPeer(f"key {reference.key_ID}: sealed for SAE {reference.slave_sae!r}, which we are not")
        if reference.kme_group not in peer.kme_groups:
            raise UnknownPeer(f"key {reference.key_ID}: KME group {reference.kme_group!r} is not shared with {name!r}")
        if not self.config.serves(reference.kme_group, level.name):
            raise NotAccepted(f"keys of KME group {reference.kme_group!r} are not for level {level.name} (`use`)")
        if level.name == "otp" and "otp" not in peer.accept:
            raise NotAccepted(f"sealed at level otp, which peer {name!r} may not use (`accept`)")

    async def _keys(self, references: list[KeyReference], use: KeyUse | None, patient: bool) -> dict[str, Key]:
        """The keys at hand, else from the KME; what came from there is stored before it is used.

        Only a pad has so many, and needs all of them: where one of the first is missing nobody is asked for the rest.
        """
        if not references:
            return {}
        first, rest = references[:ASKED_FIRST], references[ASKED_FIRST:]
        try:
            found = await self.keys.fetch(first, use=use, patient=patient)
            if rest and len(found) == len(first):
                found |= await self.keys.fetch(rest, use=use, patient=patient)
        except KeyUsed as error:
            log.error("key_used_before", peer_sae=references[0].master_sae, cause=str(error))
            raise
        keys = {reference.key_ID: key for reference, key in found.items()}
        if not keys:
            named = ", ".join(reference.key_ID for reference in references[:3])
            raise KeyNotFound(f"no KME knows key {named}: not synchronised yet, expired, or never issued")
        return keys

    def _signers(self, identifier: cms.CertificateID) -> list[PeerCertificates]:
        """The peers one of whose signing certificates this is."""
        return [peer for peer in self.certificates.values() if signs_under(peer, identifier)]

    def _peers(self, references: Iterable[KeyReference], unsealed: Unsealed) -> set[str]:
        """The peers whom the keys and the signature of a layer prove."""
        by_key = {self.config.peer_by_sae(reference.master_sae or "") for reference in references}
        peers = {found[0] for found in by_key if found is not None}
        return peers | ({unsealed.signed_by.name} if unsealed.signed_by else set())


_AROUND = frozenset({"aes", *cms.FURTHER_KEMS})
"""The levels that may go around another one."""


def _check_innermost(level: Level, layers: _Layers) -> None:
    """Quantum enhancement goes around what is signed."""
    if level.quantum and len(layers.protection) > 1:
        raise BadStructure(f"{layers.names}: level aes goes around pqc and rsa only")


def _check_order(outer: Level, inner: Level, protection: list[str]) -> None:
    """A further KEM goes around level pqc or another further KEM, each once: none of them says who sealed."""
    if outer.name not in cms.FURTHER_KEMS:
        return
    if inner.name != "pqc" and (inner.name not in cms.FURTHER_KEMS or inner.name in protection):
        raise BadStructure(f"{inner.name} inside a layer of {outer.name}")


def _is_for(identity: Identity, recipient: cms.KEMRecipient | cms.RSARecipient) -> bool:
    if isinstance(recipient, cms.KEMRecipient) and recipient.kem in cms.FURTHER_KEMS:
        return identity.further_kem(recipient.kem, recipient.certificate.ski) is not None
    pairs = (identity.kem, identity.rsa_encryption, *identity.older)
    return any(names(recipient.certificate, pair.certificate) for pair in pairs)


def _without_success(recipient: Recipient) -> Recipient:
    """The recipient with NOTIFY (RFC 3461, 4.1) that asks for no notice of success."""
    wanted = [each for each in (recipient.notify or "").upper().split(",") if each not in ("", "SUCCESS")]
    return replace(recipient, notify=",".join(wanted) or None)


def _enveloped(message: bytes) -> cms.AuthEnveloped:
    return cms.decode_enveloped(mime.sealed_content(message))


@contextmanager
def _silent() -> Iterator[None]:
    """Failures in here are answered alike: else answers would tell who is named, or what is right about a forgery."""
    try:
        yield
    except CannotOpen as error:
        error.silent = True
        raise


def _folded(domain: str) -> str:
    """A domain as domains are compared: A-labels in lower case (RFC 5890, 2.3.2.1)."""
    try:
        return fold_domain(domain)
    except ValueError:
        return domain.lower()


def _folded_mailbox(mailbox: str) -> str:
    """A mailbox as they are compared: the local part as it is (RFC 5321, 2.4), the domain folded."""
    local, at, domain = mailbox.rpartition("@")
    return local + at + _folded(domain) if at else mailbox


def _has_it(names_: tuple[str, ...], served: set[str]) -> bool:
    """Whether a recipient has the mail, themselves or by all their aliases."""
    recipient, *aliases = names_
    return recipient in served or (bool(aliases) and served.issuperset(aliases))


def _check_time(sealed_at: datetime, now: datetime) -> None:
    """Raises OutsideWindow."""
    if sealed_at < now - WINDOW:
        raise OutsideWindow(f"sealed at {sealed_at:%Y-%m-%d %H:%M:%S} UTC, more than {WINDOW.days} days ago")
    if sealed_at > now + SKEW:
        raise OutsideWindow(f"sealed at {sealed_at:%Y-%m-%d %H:%M:%S} UTC, which is still to come; check both clocks")


def _check_carriable(original: bytes, max_hops: int) -> None:
    """Raises BadStructure for an original that no mail server could have sent, or that is in a loop."""
    try:
        mime.check_carriable(original, max_hops)
    except MalformedMessage as error:
        raise BadStructure(f"the original: {error}") from error


def _arrived(layers: _Layers, envelope: SealedEnvelope, mailboxes: tuple[str, ...], now: datetime) -> Arrived:
    """What the store remembers, until no copy could be opened any more."""
    latest = max(now, envelope.sealed_at) + WINDOW + SKEW
    folded = tuple(dict.fromkeys(map(_folded_mailbox, mailboxes)))
    return Arrived(envelope.master_sae, envelope.id, layers.fingerprint, latest.timestamp(), folded)


def _by_origin(references: Iterable[KeyReference]) -> dict[tuple[str, str], list[KeyReference]]:
    """References by (KME group, master SAE), which is how a key_ID is unique."""
    sorted_out: defaultdict[tuple[str, str], list[KeyReference]] = defaultdict(list)
    for reference in references:
        sorted_out[reference.kme_group or "", reference.master_sae or ""].append(reference)
    return dict(sorted_out)
