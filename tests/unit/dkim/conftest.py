"""A DNS zone, and keys for alice.example whose records stand in it.
Standard: keys are made once; each test has a zone of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import dkim
import pytest
from cryptography.hazmat.primitives import serialization

from relay.dkim import KeyRecords, SigningKey, Verifier, make_key
from tests.testlib.zone import Zone, zone_server


@dataclass(frozen=True)
class Keys:
    """Of alice.example, with two algorithms, of bob.example, and one that is too weak to be made on purpose."""

    rsa: SigningKey
    ed25519: SigningKey
    bob: SigningKey
    weak: SigningKey

    @property
    def all(self) -> list[SigningKey]:
        return [self.rsa, self.ed25519, self.bob, self.weak]


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    directory = tmp_path_factory.mktemp("dkim")
    directory.chmod(0o700)
    return Keys(
        make_key(directory / "rsa.pem", "alice.example", "r", "rsa"),
        make_key(directory / "ed25519.pem", "alice.example", "e", "ed25519"),
        make_key(directory / "bob.pem", "bob.example", "b", "rsa"),
        make_key(directory / "weak.pem", "alice.example", "weak", "rsa", bits=1024),
    )


@pytest.fixture
async def zone(keys: Keys) -> AsyncIterator[Zone]:
    async with zone_server() as server:
        server.texts = {key.name: key.record.encode() for key in keys.all}
        yield server


@pytest.fixture
def verifier(zone: Zone) -> Verifier:
    return Verifier(KeyRecords(timeout=2, servers=[zone.address]))


def pem(key: SigningKey) -> bytes:
    """As files and dkimpy have it."""
    return key.private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def dkimpy_says(message: bytes, texts: Mapping[str, bytes], index: int = 0) -> bool:
    """The second opinion: whether dkimpy by itself finds the signature with this number valid."""

    def look_up(name: bytes, timeout: float = 5) -> bytes | None:
        return texts.get(name.decode().rstrip("."))

    return bool(dkim.DKIM(message).verify(idx=index, dnsfunc=look_up))
