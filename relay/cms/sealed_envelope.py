"""The sealed envelope: what a payload says of itself, so that the receiver need not believe what stands outside.
Standard: relay/FORMAT.md; DER, of which there is one form for each value.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated

from cryptography.hazmat import asn1

from relay.cms import der
from relay.errors import BadStructure

VERSION = 1
ID_OCTETS = 16
MAX_ADDRESS_OCTETS = 1024
MAX_RECIPIENTS = 10_000
_ATOM = r"[^\x00-\x20\x7f()<>\[\]:;@\\,\"]+"
_MAILBOX = re.compile(
    rf'(?:{_ATOM}|"(?:[^\x00-\x1f\x7f"\\]|\\[\x20-\x7e])*")(?P<domain>@(?:{_ATOM}|\[[^\x00-\x20\x7f<>\[\]\\]+\]))?'
)
"""Mailbox of RFC 5321, 4.1.2, or a local part alone; dots may stand anywhere in it."""
MAX_OCTETS = 1024 * 1024
"""The whole envelope; more is refused before it is parsed."""


@dataclass(frozen=True, slots=True)
class SealedEnvelope:
    """One mail to one site, as its sender's relay got it.

    `layers` are named from the inside out (`pqc+aes`), `sealed_at` is in UTC and whole seconds, `sender` is the SMTP
    sender ("" for the null one), `recipients` are mailboxes: those of this copy alone. `id` (16 octets) is of this
    copy. The addresses never appear in repr() or logs.
    """

    master_sae: str
    slave_sae: str
    layers: str
    sealed_at: datetime
    sender: str = field(repr=False)
    recipients: tuple[str, ...] = field(repr=False)
    id: bytes = field(default_factory=lambda: os.urandom(ID_OCTETS))

    def encode(self) -> bytes:
        """SealedEnvelope as DER. Raises ValueError where an address or a name is too long, or is no Unicode."""
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

    def check_addresses(self) -> None:
        """Raises ValueError for what is no address: it would be written into SMTP commands as it stands."""
        sender = _MAILBOX.fullmatch(self.sender)
        if self.sender and not (sender and sender["domain"] and self.sender.isprintable()):
            raise ValueError("the sender is no mail address")
        if not all(_MAILBOX.fullmatch(each) and each.isprintable() for each in self.recipients):
            raise ValueError("a recipient is no mail address")


def decode_sealed_envelope(octets: bytes) -> SealedEnvelope:
    """The envelope again; raises BadStructure for anything that `encode` would not write."""
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
    try:
        envelope.check_addresses()
    except ValueError as error:
        raise BadStructure(f"the sealed envelope: {error}") from error
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
    sender: Annotated[str, asn1.Size(min=0, max=MAX_ADDRESS_OCTETS)]
    recipients: Annotated[
        list[Annotated[str, asn1.Size(min=1, max=MAX_ADDRESS_OCTETS)]], asn1.Size(min=1, max=MAX_RECIPIENTS)
    ]
