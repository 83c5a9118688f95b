"""Fuzz targets for CMS: BER to DER, the decoders, and whole messages through the opener with all keys at hand.
Standard: RFC 5652, RFC 5083, X.690; what opens is octet for octet an original that was sealed.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

from relay.config import load_config
from relay.errors import BadStructure, RelayError
from relay.formats import cms
from relay.formats.cms import ber
from relay.journey.opening import MailOpener
from relay.journey.opening.layers import Layers
from relay.keys import Key, KeyReference
from relay.keys.ring import KeyRing
from relay.mail import OpenedMail
from relay.schemes.aes import AES
from relay.schemes.otp import OneTimePad
from relay.schemes.pqc import PQC
from relay.schemes.rsa import RSA
from relay.store.delivery_attempts import Begun
from relay.store.delivery_records import DeliveryRecords
from relay.store.received import ReceivedKeys
from relay.store.received_table import Bound
from tests.system.fuzz.target import Target, check
from tests.testlib import hostile
from tests.vectors import parts
from tests.vectors.case import NOW, RECIPIENT, Case, message, read_all
from tests.vectors.people import person
from tests.vectors.settings import CONFIG

WORDS = (
    b"\x30\x80", b"\x30\x82\x01\x00", b"\x30\x84\x7f\xff\xff\xff", b"\x31\x80", b"\x24\x80", b"\xa0\x80", b"\x80\x80", b"\x00\x00",
    b"\x04\x00", b"\x04\x01x", b"\x04\x10" + bytes(16), b"\x02\x01\x00", b"\x02\x01\x04", b"\x02\x81\x01\x00", b"\x05\x00",
    b"\x1f\x1f", b"\xbf\xff\xff\x7f", b"\x88" + b"\xff" * 8, b"\x89" + b"\xff" * 9, b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01",
    bytes.fromhex("06092a864886f70d010702"), bytes.fromhex("060b2a864886f70d0109100117"), bytes.fromhex("060960864801650304012e"),
    b"\x0c\x011", b"\x0c\x012", b"\x0c\x09alice-bob", b"\xa2\x00", b"\xa4\x00", b"\x7f" * 40, b"\xff", b"\x00",
)  # fmt: skip


def seeds() -> list[bytes]:
    """Every vector that is CMS, those that do not open included, and the SignedData that lies inside of others."""
    signed = [parts.signed(parts.PAYLOAD, person("alice"), scheme) for scheme in cms.SignatureScheme]
    enveloped = [case.content for case in read_all() if case.form == "cms" and len(case.content) <= 20_000]
    return [*map(cms.encode_signed, signed), *enveloped]


def decoders(data: bytes) -> None:
    """BadStructure, or a value that encodes to something that reads as the same value."""
    with suppress(BadStructure):
        der = ber.to_der(data)
        check(ber.to_der(der) == der, "the pass that makes DER changes DER")
    with suppress(BadStructure):
        enveloped = cms.decode_enveloped(data)
        check(cms.decode_enveloped(cms.encode_enveloped(enveloped)) == enveloped, "enveloped data changes when written")
    with suppress(BadStructure):
        signed = cms.decode_signed(data)
        again = cms.decode_signed(cms.encode_signed(signed))
        check(again == signed and signed.signing_time is not None, "signed data changes when written")


def opening(data: bytes) -> None:
    """What opens is what somebody has sealed, and everything else is a RelayError."""
    opener, originals = _bob()
    with suppress(RelayError):
        opened = opener(data)
        check(opened is None or hashlib.sha256(opened).hexdigest() in originals, "what opened was never sealed")


class _Keys:
    """A key ring and a store that have the keys of all vectors, none of which has opened anything."""

    def __init__(self, cases: Iterable[Case]) -> None:
        self._keys = {name.key_ID: key for case in cases for name, key in case.keys.items()}

    async def fetch(
        self, references: Iterable[KeyReference], *, use: cms.KeyUse | None = None, patient: bool = True
    ) -> dict[KeyReference, Key]:
        return {each: Key(each.key_ID, key) for each in references if (key := self._keys.get(each.key_ID)) is not None}

    async def unanswered(self, _: object) -> bool:
        return False

    async def admit(self, bound: Sequence[Bound], opened: OpenedMail | None = None) -> Begun:
        return Begun()


@functools.cache
def _bob() -> tuple[Callable[[bytes], bytes | None], frozenset[str]]:
    """Bob's opener, and the digests of all originals that ever were sealed for Bob."""
    cases = read_all()
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "relay.toml").write_text(CONFIG)
        config = load_config(Path(name) / "relay.toml")
    levels = {level.name: level for level in (OneTimePad(), AES(), PQC(), RSA())}
    keys = _Keys(cases)
    certificates = {"alice": person("alice").certificates}
    ring, received, openings = cast(KeyRing, keys), cast(ReceivedKeys, keys), cast(DeliveryRecords, keys)
    identity = person("bob").identity
    opener = MailOpener(
        lambda: Layers(config, levels, ring, identity, certificates), received, openings, clock=lambda: NOW
    )

    def opened(content: bytes) -> bytes | None:
        found = asyncio.run(opener.open(message(content), [RECIPIENT]))
        return None if found is None else found.original

    return opened, frozenset(case.sha256 for case in cases if case.sha256)


CMS = Target("cms", decoders, seeds, WORDS, hostile.STRUCTURES)
OPENING = Target("opening", opening, seeds, WORDS)
