"""Payloads for tests of the levels: an original under the sealed envelope that Alice's relay would write.
Standard: relay/FORMAT.md; everything has a default, so that a test says only what it is about.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from relay.formats import cms, mime
from relay.formats.cms import SealedEnvelope

SENDER = "ann@alice.example"
RECIPIENTS = ("ben@bob.example",)


def sealed_envelope(
    layers: str = "aes",
    *,
    master_sae: str = "2",
    slave_sae: str = "1",
    sealed_at: datetime | None = None,
    sender: str = SENDER,
    recipients: tuple[str, ...] = RECIPIENTS,
) -> SealedEnvelope:
    """From Alice (SAE 2) to Bob (SAE 1), sealed now."""
    now = (sealed_at or datetime.now(UTC)).replace(microsecond=0)
    return SealedEnvelope(master_sae, slave_sae, layers, now, sender, recipients)


def payload(original: bytes, layers: str = "aes") -> bytes:
    """The payload around an original."""
    return bytes(mime.wrap_payload(original, sealed_envelope(layers).encode()))


def said_whose(message: bytes) -> bytes:
    """CMS of other software, which has no way to say whose quantum key it names, with our key attribute (as DER)."""
    enveloped = cms.decode_enveloped(message)
    [recipient] = enveloped.recipients
    assert isinstance(recipient, cms.KEKRecipient)
    attribute = cms.QKDKeyAttribute("2", "1", "alice-bob")
    return cms.encode_enveloped(replace(enveloped, recipients=(replace(recipient, attribute=attribute),)))
