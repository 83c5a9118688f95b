"""Opens a sealed message layer by layer: which keys it names, whether they are for us, then the tag and the signature.
Standard: relay/FORMAT.md, the receiver's order; nothing of a layer is used before the layer is verified.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import structlog

from relay.config import Config, PeerSettings
from relay.errors import BadStructure, CannotOpen, KeyNotFound, KeyUsed, NotAccepted, UnknownPeer
from relay.formats import cms, mime
from relay.formats.cms import KeyUse
from relay.keys import Key, KeyReference
from relay.keys.ring import KeyRing
from relay.keys.types import by_origin
from relay.levels import AES, LEVELS, ON_TOP, PQC
from relay.mail import domain_of
from relay.runtime.aio import off_loop
from relay.schemes import Opening, Scheme
from relay.schemes.signatures import names, signs_under
from relay.store.received_table import Bound

if TYPE_CHECKING:
    from relay.identity import Identity, PeerCertificates

log = structlog.get_logger(__name__)

MAX_LAYERS = 2 + len(cms.FURTHER_KEMS)
ASKED_FIRST = 128
"""Number of keys asked for at first: anybody can send a mail that names thousands which do not exist."""
_AROUND = frozenset({ON_TOP, *cms.FURTHER_KEMS})
"""The levels that may go around another one."""
_SIGNED = " and ".join(level.name for level in LEVELS if not level.quantum)


@dataclass(slots=True)
class OpenedLayers:
    """What was found on the way inwards; `fingerprint` is that of the outermost layer.

    `claims` are the known peers that the layers name by SAE or certificate, `peers` those of whom that is verified.
    """

    claims: set[str] = field(default_factory=set)
    protection: list[str] = field(default_factory=list)
    peers: set[str] = field(default_factory=set)
    keys: list[KeyReference] = field(default_factory=list)
    bound: list[Bound] = field(default_factory=list)
    fingerprint: bytes = b""

    @property
    def names(self) -> str:
        """The layers from the inside out, as `pqc+aes`."""
        return "+".join(self.protection)

    @property
    def claimed(self) -> str:
        """The one peer whose name it bears, "" where it bears none or several."""
        return _the_one(self.claims)


class Layer(NamedTuple):
    """One layer that is still sealed; the keys that it names, and the peer whose they are, where it names any."""

    level: Scheme
    enveloped: cms.AuthEnveloped
    references: tuple[KeyReference, ...]
    peer: tuple[str, PeerSettings] | None


@dataclass(frozen=True, slots=True)
class Layers:
    """What opens layers, the same for one mail from start to end; `certificates` are the peers' by peer name."""

    config: Config
    levels: Mapping[str, Scheme]
    keys: KeyRing
    identity: Identity | None = None
    certificates: Mapping[str, PeerCertificates] = field(default_factory=dict)

    async def recognise(self, message: bytes, sender: str) -> Layer | None:
        """The outermost layer of a message that is sealed for us, None for ordinary mail and what others have sealed.

        `sender`, that of the SMTP envelope, only decides whether a message that we cannot read was meant for us. Raises
        BadStructure where it was, UnknownPeer and NotAccepted.
        """
        try:
            return await off_loop(mime.work(message), self._outermost, message)
        except BadStructure:
            if self.config.peer_by_domain(domain_of(sender)) is not None:
                raise
            return None

    async def open(self, found: OpenedLayers, layer: Layer, size: int, *, patient: bool) -> mime.Entity:
        """The payload of the innermost layer; `size` is that of the message in bytes.

        Raises CannotOpen, KeyUnavailable or StoreUnavailable; what was found until then stands in `found`.
        """
        while True:
            level = layer.level.name
            found.protection.insert(0, level)
            payload = await self._unsealed(found, layer, patient=patient)
            entity = await off_loop(max(size, len(payload)), mime.unwrap, payload)
            del payload  # nor is it for longer than it takes
            if entity.kind == "message" and level not in cms.FURTHER_KEMS:
                if layer.level.quantum and len(found.protection) > 1:
                    raise BadStructure(f"{found.names}: level {ON_TOP} goes around {_SIGNED} only")
                return entity
            if entity.kind != "enveloped" or level not in _AROUND or len(found.protection) == MAX_LAYERS:
                raise BadStructure(f"{entity.kind} data inside a layer of {level}")
            layer = await off_loop(size, self._inner, entity.content, found.protection)
            del entity  # a large message is not there once more for each layer

    def _outermost(self, message: bytes) -> Layer | None:
        if not mime.is_sealed(message):
            return None
        level, enveloped, references = self._decoded(mime.sealed_content(message))
        if not self._is_for_us(level, enveloped, references):
            return None
        try:
            return self._checked(level, enveloped, references)
        except CannotOpen as error:
            saes = {each.master_sae or "" for each in references}
            error.claimed = _the_one({known[0] for sae in saes if (known := self.config.peer_by_sae(sae))})
            raise

    def _inner(self, der: bytes, around: list[str]) -> Layer:
        """What is inside; a further KEM goes around level pqc or another one, each once: none says who sealed."""
        level, enveloped, references = self._decoded(der)
        outer, inner = around[0], level.name
        kems = cms.FURTHER_KEMS
        if outer in kems and inner != PQC.name and (inner not in kems or inner in around):
            raise BadStructure(f"{inner} inside a layer of {outer}")
        return self._checked(level, enveloped, references)

    def _decoded(self, der: bytes) -> tuple[Scheme, cms.AuthEnveloped, tuple[KeyReference, ...]]:
        enveloped = cms.decode_enveloped(der)
        for level in self.levels.values():
            if level.recognises(enveloped):
                return level, enveloped, level.references(enveloped)
        raise BadStructure("no level seals for this mixture of recipients")

    def _is_for_us(self, level: Scheme, enveloped: cms.AuthEnveloped, references: Sequence[KeyReference]) -> bool:
        """Whether a message is between a peer and us, rather than one that people sealed for each other."""
        if level.quantum:
            return bool(references)
        return self.identity is not None and any(
            _is_for(self.identity, recipient)
            for recipient in enveloped.recipients
            if isinstance(recipient, cms.KEMRecipient | cms.RSARecipient)
        )

    def _checked(self, level: Scheme, enveloped: cms.AuthEnveloped, references: tuple[KeyReference, ...]) -> Layer:
        """The one place that decides whether keys are of a peer, for us, of a group that both share, for this level.

        No key is asked for before: a stranger who names keys would make KMEs work, and burn keys of others.
        """
        known: tuple[str, PeerSettings] | None = None
        origins = {(each.master_sae, each.slave_sae, each.kme_group): each for each in references}
        for (master_sae, slave_sae, group), each in origins.items():
            known = self.config.peer_by_sae(master_sae or "")
            if known is None:
                raise UnknownPeer(f"key {each.key_ID}: sealed by SAE {master_sae!r}, which is no peer of ours")
            name, peer = known
            if slave_sae != self.config.site.sae_id:
                raise UnknownPeer(f"key {each.key_ID}: sealed for SAE {slave_sae!r}, which we are not")
            if group not in peer.kme_groups:
                raise UnknownPeer(f"key {each.key_ID}: KME group {group!r} is not shared with {name!r}")
            if not self.config.serves(group, level.use or ""):
                raise NotAccepted(f"keys of KME group {group!r} are not for level {level.name} (`use`)")
            if level.name != ON_TOP and level.name not in peer.accept:  # no other level can be inside
                raise NotAccepted(f"sealed at level {level.name}, which peer {name!r} may not use (`accept`)")
        return Layer(level, enveloped, references, known)

    async def _unsealed(self, found: OpenedLayers, layer: Layer, *, patient: bool) -> bytes:
        """The payload of one layer, verified; what its tag has shown is noted even where something else is wrong."""
        level, enveloped, references, peer = layer
        found.claims |= {peer[0]} if peer is not None else set()
        fingerprint = await off_loop(len(enveloped.ciphertext), enveloped.fingerprint)
        found.fingerprint = found.fingerprint or fingerprint
        # A key of a pad never opens two messages, whatever is set.
        most = peer[1].key_max_messages if peer is not None and level.name == AES.name else 1
        use = KeyUse(level.name, fingerprint, most)
        keys = await self._keys(references, use, patient=patient) if references else {}
        verified = partial(_note_bound, found, references, use)
        unsealed = await level.open(
            enveloped, Opening(keys, self.identity, partial(self._signers, found), verified=verified)
        )
        found.peers |= {peer[0]} if peer is not None else set()
        found.peers |= {unsealed.signed_by.name} if unsealed.signed_by is not None else set()
        return unsealed.payload

    async def _keys(self, references: Sequence[KeyReference], use: KeyUse, *, patient: bool) -> dict[str, Key]:
        """The keys that the site holds already, else from the KME.

        What came from there is written down before it is used, since a KME gives a key once. A relay that is killed
        while it opens the mail, or cannot hand it on, needs the key again. Only a pad has more than the first few
        keys, and it needs all of them. Where one of the first is missing nobody is asked for the rest.
        """
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

    def _signers(self, found: OpenedLayers, identifier: cms.CertificateID) -> list[PeerCertificates]:
        """The peers one of whose signing certificates this is."""
        signers = [peer for peer in self.certificates.values() if signs_under(peer, identifier)]
        found.claims |= {peer.name for peer in signers}
        return signers


def _the_one(names: set[str]) -> str:
    """The only one of them, "" where there are several or none."""
    return next(iter(names)) if len(names) == 1 else ""


def _note_bound(found: OpenedLayers, references: Sequence[KeyReference], use: KeyUse) -> None:
    """A right tag has shown what these keys are for."""
    found.keys += references
    found.bound += [
        Bound(group, master, tuple([each.key_ID for each in some]), use)
        for (group, master), some in by_origin(references).items()
    ]


def _is_for(identity: Identity, recipient: cms.KEMRecipient | cms.RSARecipient) -> bool:
    if isinstance(recipient, cms.KEMRecipient) and recipient.kem in cms.FURTHER_KEMS:
        return identity.further_kem(recipient.kem, recipient.certificate.ski) is not None
    pairs = (identity.kem, identity.rsa_encryption, *identity.older)
    return any(names(recipient.certificate, pair.certificate) for pair in pairs)
