"""The sealed envelope: the authenticated metadata of a payload, independent of what is outside.
Standard: relay/FORMAT.md, 7; DER, with one form for each value and one spelling of each address.

The receiver's checks are here, because the sender runs them too before it seals. Nothing may leave that our own
receiver would refuse.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated

from relay.errors import BadStructure, NotNamed
from relay.formats.cms import der
from relay.formats.cms.der import asn1
from relay.formats.mailbox import is_folded

VERSION = 1
ID_OCTETS = 16
MAX_ADDRESS = 1024
"""Maximum length of an address, in characters."""
MAX_RECIPIENTS = 10_000
MAX_OCTETS = 1024 * 1024
"""Maximum size of the envelope, in octets; a larger one is refused unparsed."""


@dataclass(frozen=True, slots=True)
class SealedEnvelope:
    """The envelope of one mail to one site, as the sender's relay received it.

    `layers` are named from the inside out (`pqc+aes`), `sealed_at` is in UTC and whole seconds. `sender` is the SMTP
    sender ("" for the null one), `recipients` are those of this copy alone. All of these are mailboxes in canonical
    spelling (relay/formats/mailbox.py). `id` (16 octets) identifies this copy. The addresses never appear in repr() or
    logs.
    """

    master_sae: str
    slave_sae: str
    layers: str
    sealed_at: datetime
    sender: str = field(repr=False)
    recipients: tuple[str, ...] = field(repr=False)
    id: bytes = field(default_factory=lambda: os.urandom(ID_OCTETS))

    def encode(self) -> bytes:
        """SealedEnvelope as DER. Raises ValueError if an address or a name is too long or not valid Unicode."""
        octets: bytes = asn1.encode_der(
            _EnvelopeFields(
                version=VERSION,
                id=self.id,
                master_sae=self.master_sae,
                slave_sae=self.slave_sae,
                layers=self.layers,
                sealed_at=asn1.GeneralizedTime(self.sealed_at.astimezone(UTC).replace(microsecond=0)),
                sender=self.sender,
                recipients=list(self.recipients),
            )
        )
        if len(octets) > MAX_OCTETS:
            raise ValueError(f"the sealed envelope is longer than {MAX_OCTETS} octets")
        return octets


@dataclass(frozen=True, slots=True)
class Ends:
    """The facts that a receiver has established about a message from `peer` before it reads the sealed envelope.

    `domains` are those whose senders the peer may name, folded by relay/formats/mailbox.py; "*" is any.
    """

    peer: str
    master_sae: str
    slave_sae: str
    layers: str
    domains: Collection[str]

    def may_send(self, sender: str) -> bool:
        """Whether the peer may name this sender, in canonical spelling; the null sender is always allowed."""
        return not sender or "*" in self.domains or sender.rpartition("@")[2] in self.domains


@lru_cache(maxsize=1024)
def is_sender(address: str) -> bool:
    """Whether this is a valid sealed sender other than the null sender."""
    return len(address) <= MAX_ADDRESS and is_folded(address)


@lru_cache(maxsize=1024)
def is_recipient(address: str) -> bool:
    """Whether this is a valid sealed recipient."""
    return len(address) <= MAX_ADDRESS and is_folded(address, local_alone=True)


def read_sealed_envelope(octets: bytes, ends: Ends) -> SealedEnvelope:
    """The decoded envelope, if it matches `ends`. Raises BadStructure and NotNamed."""
    envelope = decode_sealed_envelope(octets)
    for stated, actual, name in (
        (envelope.master_sae, ends.master_sae, "the SAE that sealed"),
        (envelope.slave_sae, ends.slave_sae, "the SAE that opens"),
        (envelope.layers, ends.layers, "the layers"),
    ):
        if stated != actual:
            raise NotNamed(f"the sealed envelope names {stated!r} as {name}, and it is {actual!r}")
    if not ends.may_send(envelope.sender):
        raise NotNamed(f"peer {ends.peer!r} sealed it for a sender of another domain; see `forwards`")
    return envelope


def decode_sealed_envelope(octets: bytes) -> SealedEnvelope:
    """The decoded envelope; raises BadStructure for anything that `encode` would not write."""
    if len(octets) > MAX_OCTETS:
        raise BadStructure("the sealed envelope is too long")
    for fields in der.children(octets, 1):
        for recipients in der.children(fields, 8)[7:]:
            der.children(recipients, MAX_RECIPIENTS, kept=False)
    parsed = der.parse(_EnvelopeFields, octets, "sealed envelope")
    if parsed.version != VERSION:
        raise BadStructure(f"sealed envelope version {der.shown(parsed.version)}; {VERSION} is the only one")
    sealed_at = parsed.sealed_at.as_datetime()
    if sealed_at.microsecond:
        raise BadStructure("the time in the sealed envelope is not in whole seconds")
    envelope = SealedEnvelope(
        parsed.master_sae,
        parsed.slave_sae,
        parsed.layers,
        sealed_at,
        parsed.sender,
        tuple(parsed.recipients),
        parsed.id,
    )
    if envelope.sender and not is_sender(envelope.sender):
        raise BadStructure("the sealed envelope: the sender is no mailbox in its one spelling")
    if not all(map(is_recipient, envelope.recipients)):
        raise BadStructure("the sealed envelope: a recipient is no mailbox in its one spelling")
    if len(set(envelope.recipients)) != len(envelope.recipients):
        raise BadStructure("the sealed envelope names one recipient twice")
    return envelope


@asn1.sequence
class _EnvelopeFields:
    version: int
    id: Annotated[bytes, asn1.Size(min=ID_OCTETS, max=ID_OCTETS)]
    master_sae: Annotated[str, asn1.Size(min=1, max=256)]
    slave_sae: Annotated[str, asn1.Size(min=1, max=256)]
    layers: Annotated[str, asn1.Size(min=1, max=256)]
    sealed_at: asn1.GeneralizedTime
    sender: Annotated[str, asn1.Size(min=0, max=MAX_ADDRESS)]
    recipients: Annotated[list[Annotated[str, asn1.Size(min=1, max=MAX_ADDRESS)]], asn1.Size(min=1, max=MAX_RECIPIENTS)]
