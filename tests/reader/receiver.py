"""The receiver's order, step by step: from a message as it arrives to what comes of it.

Standard: relay/FORMAT.md, 9.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from tests.reader import der, envelope, layers, limits, mime, signed, structures
from tests.reader.der import BadEncodingError
from tests.reader.envelope import Envelope
from tests.reader.mailboxes import Mailbox, mailbox
from tests.reader.memory import WINDOW_COMING, WINDOW_PAST, Memory, OneKey
from tests.reader.model import ANYBODY, Delivered, Failure, Held, Keys, Outcome, PassedOn, Peer, Refused, Site
from tests.reader.structures import KEMS, ML_KEM, Layer, QuantumKeys

FURTHER_KEMS = {name for name, _ in KEMS.values()} - {ML_KEM}
_BAD, _UNKNOWN, _NOT_ACCEPTED, _NOT_NAMED = "bad structure", "unknown peer", "not accepted", "not named"


def receive(
    message: bytes,
    site: Site,
    keys: Keys,
    memory: Memory,
    now: datetime,
    recipients: Sequence[str],
) -> Outcome:
    """What comes of a message that arrives for `recipients`.

    Args:
        message: octet for octet, header and body.
        keys: what the store and the KMEs give now.
        memory: what is remembered. The outcome has what is to be remembered from now on, whatever else came of it.
    """
    opening = _Opening(site, keys, memory, now)
    try:
        return opening.run(message, recipients)
    except Failure as failure:
        if failure.kind == "no key":
            return Held(opening.memory)
        unreadable = failure.step == 1 and failure.kind == _BAD and not opening.names
        ours = any(each.rpartition("@")[2].lower() in site.domains for each in recipients)
        by_relay = opening.for_a_site and ours and not opening.names and mime.sealed_by_relay(message)
        not_for_us = failure.kind == "not for us" and not by_relay
        if not_for_us or (unreadable and not mime.stands_in(message, _named(site))):
            return PassedOn(opening.memory)
        return Refused(failure.step, failure.kind, opening.memory)


def _named(site: Site) -> list[bytes]:
    """By what a message that cannot be read names quantum keys, or private keys of the site."""
    identifiers = [der.oid(each) for each in (structures.ID_QKD_KEY, structures.ID_ONE_TIME_PAD, structures.ID_ORI_PAD)]
    return [*identifiers, *(key.identifier for key in site.private_keys)]


@dataclass
class _Opening:
    """One message on its way through the steps: what was found so far."""

    site: Site
    keys: Keys
    memory: Memory
    now: datetime
    names: list[str] = field(default_factory=list)  # of the layers that are open, from the outside in
    peer: Peer | None = None
    fingerprint: bytes = b""  # of the outermost layer
    for_a_site: bool = False  # its keys are named by identifier

    def run(self, message: bytes, recipients: Sequence[str]) -> Outcome:
        """Steps 1 to 12."""
        try:
            octets = mime.sealed_octets(message)
        except mime.NotSealedError as error:
            raise Failure(1, "not for us", "an ordinary mail") from error
        except mime.BadMessageError as error:
            raise Failure(1, _BAD, str(error)) from error
        payload = self._open_layers(octets)
        peer = self.peer
        if peer is None:  # at pqc and rsa the signature says who, in step 9
            raise AssertionError("every level names a peer")
        sealed, original = self._check_envelope(payload, peer)
        return self._deliver(sealed, original, peer, recipients)

    def _open_layers(self, octets: bytes) -> bytes:
        """Steps 1 to 9, layer after layer."""
        while True:
            layer = self._structure(octets)
            inside = self._open_quantum(layer, layer.quantum) if layer.quantum else self._open_private(layer)
            self.fingerprint = self.fingerprint or layer.fingerprint
            self.names.append({ML_KEM: "pqc"}.get(layer.name, layer.name))
            if layer.name in {ML_KEM, "rsa"}:
                return self._verify(inside)
            if layer.name == "otp":
                inside = layers.unpad(inside, compressed=layer.compressed)
            another = self._inside(inside)
            if another is None:
                if layer.name in FURTHER_KEMS or self.names[1:]:
                    raise Failure(8, _BAD, "no layer of pqc or rsa inside those that stand around one")
                return inside
            if layer.name == "otp":
                raise Failure(8, _BAD, "a layer where none can be")
            octets = another

    def _structure(self, octets: bytes) -> Layer:
        """Step 1, after Content-Type and base64."""
        if len(self.names) == limits.LAYERS:
            raise Failure(1, _BAD, "too many layers")
        try:
            if octets[1:2] == b"\x80":
                octets = der.from_ber(octets)
            layer = structures.read(octets)
        except BadEncodingError as error:
            raise Failure(1, _BAD, str(error)) from error
        outside = set(self.names)
        if (layer.name == "otp" and outside) or (layer.name == "aes" and outside - {"aes"}):
            raise Failure(1, _BAD, "a layer that cannot stand inside another")
        if layer.name in outside & FURTHER_KEMS or (layer.name == "rsa" and outside & FURTHER_KEMS):
            raise Failure(1, _BAD, "further KEMs stand around pqc only, each once")
        return layer

    def _open_quantum(self, layer: Layer, quantum: QuantumKeys) -> bytes:
        """Steps 2 to 7 at otp and aes."""
        self.peer = peer = self._peer(quantum)
        if self.site.groups[quantum.group] not in {layer.name, "both"}:
            raise Failure(3, _NOT_ACCEPTED, "the group's use")
        if layer.name == "otp":
            self._accept("otp", peer, 3)
        names = [OneKey(quantum.group, quantum.master, key_id) for key_id in quantum.key_ids]
        for name in names:
            forbidden = self.memory.forbids(name, layer.name, layer.fingerprint, peer.key_max_messages)
            if forbidden:
                raise Failure(4, forbidden, name.key_id)
        if not all(name in self.keys for name in names):
            raise Failure(5, "no key")
        found = [self.keys[name] for name in names]
        layers.check_lengths(layer, found)
        inside = layers.open_pad(layer, found) if layer.name == "otp" else layers.open_aes(layer, found[0])
        self.memory = self.memory.bind(names, layer.name, layer.fingerprint)
        return inside

    def _peer(self, quantum: QuantumKeys) -> Peer:
        """Step 2: the SAEs and the group are those of a configured peer and ours."""
        if quantum.slave == self.site.sae:
            for peer in self.site.peers:
                if peer.sae == quantum.master and quantum.group in peer.groups and quantum.group in self.site.groups:
                    return peer
        raise Failure(2, _UNKNOWN, f"{quantum.master} {quantum.slave} {quantum.group}")

    def _accept(self, level: str, peer: Peer, step: int) -> None:
        if level not in peer.accept:
            raise Failure(step, _NOT_ACCEPTED, level)

    def _open_private(self, layer: Layer) -> bytes:
        """Step 6 at rsa and with every KEM."""
        inside = layers.open_for(layer, self.site.private_keys)
        if inside is None:
            self.for_a_site = all(each.identifier is not None for each in layer.recipients)
            raise Failure(1, "not for us", "sealed for other certificates")
        return inside

    def _inside(self, entity: bytes, *, signed: bool = False) -> bytes | None:
        """Step 8: what CMS an entity is."""
        try:
            return mime.inside(entity, signed=signed)
        except mime.BadMessageError as error:
            raise Failure(8, _BAD, str(error)) from error

    def _verify(self, entity: bytes) -> bytes:
        """Step 9."""
        level = self.names[-1]
        octets = self._inside(entity, signed=True)
        if octets is None:
            raise Failure(8, _BAD, "no SignedData where it must be")
        payload, peer = signed.verify(octets, level, self.site.peers, self.now)
        if self.peer not in (None, peer):
            raise Failure(9, "bad signature", "layers from different peers")
        self.peer = peer
        return payload

    def _check_envelope(self, payload: bytes, peer: Peer) -> tuple[Envelope, bytes]:
        """Step 10."""
        try:
            octets, original = envelope.split(payload)
            sealed = envelope.read(octets)
            mime.check_header(original)
        except (BadEncodingError, UnicodeError, mime.BadMessageError) as error:
            raise Failure(10, _BAD, str(error)) from error
        if (sealed.master, sealed.slave) != (peer.sae, self.site.sae):
            raise Failure(10, _NOT_NAMED, "other SAEs")
        if sealed.layers != "+".join(reversed(self.names)):
            raise Failure(10, _NOT_NAMED, "other layers")
        self._accept(self.names[-1], peer, 10)
        allowed = peer.domains | peer.forwards
        if sealed.sender and ANYBODY not in allowed and sealed.sender.rpartition("@")[2] not in allowed:
            raise Failure(10, _NOT_NAMED, "a sender of another domain")
        if not self.now - WINDOW_PAST <= sealed.sealed_at <= self.now + WINDOW_COMING:
            raise Failure(10, "outside window")
        if why := envelope.cannot_be_carried(original):
            raise Failure(10, _BAD, why)
        return sealed, original

    def _deliver(self, sealed: Envelope, original: bytes, peer: Peer, recipients: Sequence[str]) -> Delivered:
        """Steps 11 and 12."""
        named = set(map(Mailbox, sealed.recipients))
        for recipient, others in self.site.aliases.items():
            if mailbox(recipient) in named:
                named |= {mailbox(other) for other in others}
        mail = (peer.sae, sealed.id)
        seen = self.memory.seen.get(mail)
        if seen and seen.until >= self.now and seen.fingerprint != self.fingerprint:
            raise Failure(11, "replayed")
        have = seen.served if seen else frozenset()
        arriving = list({mailbox(recipient): recipient for recipient in recipients}.items())
        due = [address for box, address in arriving if box in named and box not in have]
        served = [address for box, address in arriving if box in named and box in have]
        aside = [address for box, address in arriving if box not in named]
        if not due and not served:
            raise Failure(11, _NOT_NAMED, "none of the recipients")
        self.memory = self.memory.serve(mail, self.fingerprint, map(mailbox, due), sealed.sealed_at, self.now)
        return Delivered(
            original,
            sealed.sender,
            tuple(due),
            "+".join(reversed(self.names)),
            peer.name,
            tuple(served),
            tuple(aside),
            self.fingerprint,
            self.memory,
        )
