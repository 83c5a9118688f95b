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
from relay.errors import BadStructure, CannotOpen, KeyNotFound, KeyUsed, NotAccepted, NotForUs, UnknownPeer
from relay.formats import cms, mime
from relay.formats.cms import KeyUse
from relay.journey.marks import is_by_relay
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
"""Number of keys requested at first: anybody can send a mail that names thousands of keys that do not exist."""
_AROUND = frozenset({ON_TOP, *cms.FURTHER_KEMS})
"""The levels that may wrap another one."""
_SIGNED = " and ".join(level.name for level in LEVELS if not level.quantum)


@dataclass(slots=True)
class OpenedLayers:
    """What opening has found, from the outside in; `fingerprint` is that of the outermost layer.

    `claims` are the configured peers that the layers name by SAE or certificate, `peers` those verified as sealers.
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
        """The one peer that the layers name; "" for none or several."""
        return _the_one(self.claims)


class Layer(NamedTuple):
    """One layer that is still sealed, the keys that it names, and the peer that these keys belong to."""

    level: Scheme
    enveloped: cms.AuthEnveloped
    references: tuple[KeyReference, ...]
    peer: tuple[str, PeerSettings] | None


@dataclass(frozen=True, slots=True)
class Layers:
    """Opens layers; the same value for one mail from start to end. `certificates` are by peer name."""

    config: Config
    levels: Mapping[str, Scheme]
    keys: KeyRing
    identity: Identity | None = None
    certificates: Mapping[str, PeerCertificates] = field(default_factory=dict)

    async def recognise(self, message: bytes, mailboxes: Sequence[str] = ()) -> Layer | None:
        """The outermost layer of a message sealed for us; None for ordinary mail, and mail sealed by others.

        Raises BadStructure for one that names our keys and cannot be parsed; also UnknownPeer and NotAccepted. What a
        relay has sealed for a site, to one of `mailboxes` in our domains, is ours: NotForUs if we have no key of it.
        """
        ours = any(domain_of(each) in self.config.site.domains for each in mailboxes)
        return await off_loop(mime.work(message), self._outermost, message, ours)

    async def open(self, opened: OpenedLayers, layer: Layer, size: int, *, patient: bool) -> mime.Entity:
        """The payload of the innermost layer; `size` is that of the message in bytes.

        Raises CannotOpen, KeyUnavailable or StoreUnavailable; `opened` then has what was found so far.
        """
        while True:
            level = layer.level.name
            opened.protection.insert(0, level)
            payload = await self._unsealed(opened, layer, patient=patient)
            entity = await off_loop(max(size, len(payload)), mime.unwrap, payload)
            del payload  # frees memory early
            if entity.kind == "message" and level not in cms.FURTHER_KEMS:
                if layer.level.quantum and len(opened.protection) > 1:
                    raise BadStructure(f"{opened.names}: level {ON_TOP} goes around {_SIGNED} only")
                return entity
            if entity.kind != "enveloped" or level not in _AROUND or len(opened.protection) == MAX_LAYERS:
                raise BadStructure(f"{entity.kind} data inside a layer of {level}")
            layer = await off_loop(size, self._inner, entity.content, opened.protection)
            del entity  # or a large message would be held once more for each layer

    def _outermost(self, message: bytes, ours: bool) -> Layer | None:
        if not mime.is_sealed(message):
            return None
        try:
            level, enveloped, references = self._decoded(mime.sealed_content(message))
        except BadStructure:
            if self._may_name_us(message):
                raise
            return None  # what people have sealed for each other may have any structure
        if not self._is_for_us(level, enveloped, references):
            if ours and _is_for_a_site(enveloped) and is_by_relay(message):
                raise NotForUs("sealed by a relay, to a key that this site does not have")
            return None
        try:
            return self._checked(level, enveloped, references)
        except CannotOpen as error:
            saes = {each.master_sae or "" for each in references}
            error.claimed = _the_one({named[0] for sae in saes if (named := self.config.peer_by_sae(sae))})
            raise

    def _inner(self, der: bytes, around: list[str]) -> Layer:
        """The inner layer. A further KEM wraps pqc or another further KEM, each once; neither names the sealer."""
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

    def _may_name_us(self, message: bytes) -> bool:
        """Whether a message that cannot be parsed has names of quantum keys in it, or of our private keys."""
        names = self.identity.key_identifiers if self.identity is not None else ()
        return mime.has_in_body(message, (*cms.QUANTUM_KEY_NAMES, *names))

    def _is_for_us(self, level: Scheme, enveloped: cms.AuthEnveloped, references: Sequence[KeyReference]) -> bool:
        """Whether a message was sealed by a relay for us, and not by one person for another."""
        if level.quantum:
            return bool(references)
        return self.identity is not None and any(
            _is_for(self.identity, recipient)
            for recipient in enveloped.recipients
            if isinstance(recipient, cms.KEMRecipient | cms.RSARecipient)
        )

    def _checked(self, level: Scheme, enveloped: cms.AuthEnveloped, references: tuple[KeyReference, ...]) -> Layer:
        """Checks that the keys belong to a peer, are for us, of a shared group, and allowed for this level.

        No key is requested before that. Otherwise anybody could load the KMEs and burn keys by naming them.
        """
        named: tuple[str, PeerSettings] | None = None
        origins = {(each.master_sae, each.slave_sae, each.kme_group): each for each in references}
        for (master_sae, slave_sae, group), each in origins.items():
            named = self.config.peer_by_sae(master_sae or "")
            if named is None:
                raise UnknownPeer(f"key {each.key_ID}: sealed by SAE {master_sae!r}, which is no peer of ours")
            name, peer = named
            if slave_sae != self.config.site.sae_id:
                raise UnknownPeer(f"key {each.key_ID}: sealed for SAE {slave_sae!r}, which we are not")
            if group not in peer.kme_groups:
                raise UnknownPeer(f"key {each.key_ID}: KME group {group!r} is not shared with {name!r}")
            if not self.config.serves(group, level.use or ""):
                raise NotAccepted(f"keys of KME group {group!r} are not for level {level.name} (`use`)")
            if level.name != ON_TOP and level.name not in peer.accept:  # no other level can be inside
                raise NotAccepted(f"sealed at level {level.name}, which peer {name!r} may not use (`accept`)")
        return Layer(level, enveloped, references, named)

    async def _unsealed(self, opened: OpenedLayers, layer: Layer, *, patient: bool) -> bytes:
        """The verified payload of one layer. Keys with a valid tag are noted even if something else is wrong."""
        level, enveloped, references, peer = layer
        opened.claims |= {peer[0]} if peer is not None else set()
        fingerprint = await off_loop(len(enveloped.ciphertext), enveloped.fingerprint)
        opened.fingerprint = opened.fingerprint or fingerprint
        # A key of a pad never opens two messages, regardless of settings.
        most = peer[1].key_max_messages if peer is not None and level.name == AES.name else 1
        use = KeyUse(level.name, fingerprint, most)
        keys = await self._keys(references, use, patient=patient) if references else {}
        verified = partial(_note_bound, opened, references, use)
        unsealed = await level.open(
            enveloped, Opening(keys, self.identity, partial(self._signers, opened), verified=verified)
        )
        opened.peers |= {peer[0]} if peer is not None else set()
        opened.peers |= {unsealed.signed_by.name} if unsealed.signed_by is not None else set()
        return unsealed.payload

    async def _keys(self, references: Sequence[KeyReference], use: KeyUse, *, patient: bool) -> dict[str, Key]:
        """The keys from the store, else from the KME.

        A key from a KME is stored before use, since the KME delivers it once, and a retry needs it again. Only a pad
        has more than the first few keys, and it needs all of them. If one of the first is missing, the rest are not
        requested.
        """
        first, rest = references[:ASKED_FIRST], references[ASKED_FIRST:]
        try:
            fetched = await self.keys.fetch(first, use=use, patient=patient)
            if rest and len(fetched) == len(first):
                fetched |= await self.keys.fetch(rest, use=use, patient=patient)
        except KeyUsed as error:
            log.error("key_used_before", peer_sae=references[0].master_sae, cause=str(error))
            raise
        keys = {reference.key_ID: key for reference, key in fetched.items()}
        if not keys:
            named = ", ".join(reference.key_ID for reference in references[:3])
            raise KeyNotFound(f"no KME knows key {named}: not synchronised yet, expired, or never issued")
        return keys

    def _signers(self, opened: OpenedLayers, identifier: cms.CertificateID) -> list[PeerCertificates]:
        """The peers that have this signing certificate."""
        signers = [peer for peer in self.certificates.values() if signs_under(peer, identifier)]
        opened.claims |= {peer.name for peer in signers}
        return signers


def _the_one(names: set[str]) -> str:
    """The only element, "" for none or several."""
    return next(iter(names)) if len(names) == 1 else ""


def _note_bound(opened: OpenedLayers, references: Sequence[KeyReference], use: KeyUse) -> None:
    """Binds the keys to what they have opened, once the tag is verified."""
    opened.keys += references
    opened.bound += [
        Bound(group, master, tuple([each.key_ID for each in some]), use)
        for (group, master), some in by_origin(references).items()
    ]


def _is_for_a_site(enveloped: cms.AuthEnveloped) -> bool:
    """Whether keys are named as at levels pqc and rsa; level smime names a person's by issuer and serial number."""
    return all(
        isinstance(each, cms.KEMRecipient | cms.RSARecipient) and bool(each.certificate.ski)
        for each in enveloped.recipients
    )


def _is_for(identity: Identity, recipient: cms.KEMRecipient | cms.RSARecipient) -> bool:
    if isinstance(recipient, cms.KEMRecipient) and recipient.kem in cms.FURTHER_KEMS:
        return identity.further_kem(recipient.kem, recipient.certificate.ski) is not None
    pairs = (identity.kem, identity.rsa_encryption, *identity.older)
    return any(names(recipient.certificate, pair.certificate) for pair in pairs)
