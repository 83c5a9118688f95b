"""Opens what is sealed for this site, layer by layer, with the site's keys.
Standard: structure, tag, signature, signer, payload are checked in this order, and only then is the original released.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from relay import cms, mime
from relay.config import Config, Peer
from relay.errors import BadSignature, BadStructure, KeyDestroyed, KeyNotFound, KeyUnavailable, UnknownPeer
from relay.keys import Key, KeyReference
from relay.keys.keyring import KeyRing
from relay.levels import Level, Opening, Unsealed
from relay.levels.content import off_loop
from relay.levels.signatures import names, signs_under
from relay.mail import domain_of
from relay.store import OTP_KEEP_FOR_S, USED_KEEP_FOR_S, ReceivedKeys

if TYPE_CHECKING:
    from relay.keys.identity import Identity, PeerCertificates

MAX_LAYERS = 2 + len(cms.FURTHER_KEMS)
ASKED_FIRST = 128
"""So many keys are asked for at first: anybody can send a mail that names thousands which do not exist."""
MAX_STATES = 100
"""Of how many missing keys it is looked up whether they were destroyed; the keys of one pad go together."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The original message, octet for octet as it was sealed, and what protected it.

    `protection` names the layers from the inside out; `peer` is the site that sealed it.
    """

    original: bytes = field(repr=False)
    protection: str
    peer: str
    keys: tuple[KeyReference, ...]


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens sealed messages; one value for the life of the relay.

    `certificates` are the peers' by peer name.
    """

    config: Config
    levels: Mapping[str, Level]
    keys: KeyRing
    received: ReceivedKeys
    identity: Identity | None = None
    certificates: Mapping[str, PeerCertificates] = field(default_factory=dict)

    async def open(self, message: bytes, sender: str = "", *, patient: bool = True) -> Opened | None:
        """The original, or None where `message` is not sealed for us: ordinary mail, or sealed by others.

        `sender` is the envelope sender: it tells the peer where the sealed message does not, and its domain
        must be the signer's. With `patient`, keys that its KME does not know yet are waited for. Raises KeyUnavailable
        or CannotOpen.
        """
        if not await off_loop(len(message), mime.is_sealed, message):
            return None
        from_peer = self.config.peer_by_domain(domain_of(sender))
        try:
            enveloped = await off_loop(len(message), _enveloped, message)
            level = self._level(enveloped)
            if not self._for_us(level, enveloped, from_peer):
                return None
        except BadStructure:
            if from_peer is not None:
                raise
            return None
        return await self._open_layers(enveloped, len(message), sender, from_peer, patient)

    async def done(self, opened: Opened) -> None:
        """The mail was delivered: its keys are kept only for as long as copies of it may still come."""
        keep_for = OTP_KEEP_FOR_S if opened.protection == "otp" else USED_KEEP_FOR_S
        for (group, master), references in _by_origin(opened.keys).items():
            await self.received.mark_used(group, master, [each.key_ID for each in references], keep_for)

    async def _open_layers(
        self, enveloped: cms.AuthEnveloped, size: int, sender: str, from_peer: tuple[str, Peer] | None, patient: bool
    ) -> Opened:
        """`size` is that of the message in octets."""
        protection: list[str] = []
        peers: set[str] = set()
        used: list[KeyReference] = []
        while True:
            level = self._level(enveloped)
            protection.insert(0, level.name)
            references = await off_loop(size, self._references, level, enveloped, from_peer)
            try:
                keys = await self._keys(references, patient)
                unsealed = await level.open(enveloped, Opening(keys, self.identity, self._signers))
            except KeyUnavailable:
                await self._check_destroyed(references)
                raise
            used += [reference for reference in references if reference.key_ID in keys]
            peers |= self._peers(references, unsealed)
            if unsealed.signed_by is not None:
                _check_domain(unsealed.signed_by, sender)
            kind, inner = mime.unwrap(unsealed.payload)
            if kind == "message" and level.name not in cms.FURTHER_KEMS:
                break
            if kind != "enveloped" or level.name not in _AROUND or len(protection) == MAX_LAYERS:
                raise BadStructure(f"{kind} data inside a layer of {level.name}")
            enveloped = await off_loop(len(inner), cms.decode_enveloped, inner)
            _check_order(level, self._level(enveloped), protection)
        if len(peers) != 1:
            raise BadSignature(f"its layers come from different peers: {', '.join(sorted(peers))}")
        return Opened(inner, "+".join(protection), peers.pop(), tuple(used))

    def _level(self, enveloped: cms.AuthEnveloped) -> Level:
        for level in self.levels.values():
            if level.recognises(enveloped):
                return level
        raise BadStructure("no level seals for this mixture of recipients")

    def _for_us(self, level: Level, enveloped: cms.AuthEnveloped, from_peer: tuple[str, Peer] | None) -> bool:
        """Whether a message is between a peer and us, rather than one that people sealed for each other."""
        if not level.quantum:
            return self.identity is not None and any(
                _is_for(self.identity, recipient)
                for recipient in enveloped.recipients
                if isinstance(recipient, cms.KEMRecipient | cms.RSARecipient)
            )
        return from_peer is not None or any(each.master_sae for each in level.references(enveloped))

    def _references(
        self, level: Level, enveloped: cms.AuthEnveloped, from_peer: tuple[str, Peer] | None
    ) -> list[KeyReference]:
        """References with both SAEs and the KME group, after a check against the configured peers."""
        return [self._checked(reference, from_peer) for reference in level.references(enveloped)]

    def _checked(self, reference: KeyReference, from_peer: tuple[str, Peer] | None) -> KeyReference:
        known = self.config.peer_by_sae(reference.master_sae) if reference.master_sae else from_peer
        if known is None:
            raise UnknownPeer(
                f"key {reference.key_ID}: sealed by SAE {reference.master_sae!r}, which is no peer of ours"
            )
        name, peer = known
        if reference.slave_sae not in (None, self.config.site.sae_id):
            raise UnknownPeer(f"key {reference.key_ID}: sealed for SAE {reference.slave_sae!r}, which we are not")
        group = reference.kme_group or next(iter(peer.kme_groups), None)
        if group not in peer.kme_groups:
            raise UnknownPeer(f"key {reference.key_ID}: KME group {group!r} is not shared with peer {name!r}")
        return replace(reference, master_sae=peer.sae_id, slave_sae=self.config.site.sae_id, kme_group=group)

    async def _keys(self, references: list[KeyReference], patient: bool) -> dict[str, Key]:
        """The keys at hand, else from the KME; what came from there is stored before it is used.

        Only a pad has so many, and needs all of them: where one of the first is missing nobody is asked for the rest.
        """
        if not references:
            return {}
        first, rest = references[:ASKED_FIRST], references[ASKED_FIRST:]
        found = await self.keys.fetch(first, patient=patient)
        if rest and len(found) == len(first):
            found |= await self.keys.fetch(rest, patient=patient)
        keys = {reference.key_ID: key for reference, key in found.items()}
        if not keys:
            named = ", ".join(reference.key_ID for reference in references[:3])
            raise KeyNotFound(f"no KME knows key {named}: not synchronised yet, expired, or never issued")
        return keys

    async def _check_destroyed(self, references: list[KeyReference]) -> None:
        """Raises KeyDestroyed where one of these keys was here before, so that the mail does not wait for it."""
        for each in references[:MAX_STATES]:
            if await self.received.state(each.kme_group or "", each.master_sae or "", each.key_ID) == "destroyed":
                raise KeyDestroyed(f"key {each.key_ID} was destroyed after its use: this is a copy, or mail too late")

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


def _enveloped(message: bytes) -> cms.AuthEnveloped:
    return cms.decode_enveloped(mime.sealed_content(message))


def _check_domain(peer: PeerCertificates, sender: str) -> None:
    """A peer signs for its own domains only; a null sender says nothing that could be wrong."""
    domain = domain_of(sender)
    if domain and domain not in peer.domains:
        raise BadSignature(f"signed by peer {peer.name!r}, but {domain} is not one of its domains")


def _by_origin(references: Iterable[KeyReference]) -> dict[tuple[str, str], list[KeyReference]]:
    """References by (KME group, master SAE), which is how a key_ID is unique."""
    sorted_out: defaultdict[tuple[str, str], list[KeyReference]] = defaultdict(list)
    for reference in references:
        sorted_out[reference.kme_group or "", reference.master_sae or ""].append(reference)
    return dict(sorted_out)
