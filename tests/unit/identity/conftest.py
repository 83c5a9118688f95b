"""Fixtures for the tests of identities: three sites, made once and copied for each test.
Standard: the copies may be changed, the originals may not.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from relay.identity import create_identity
from relay.identity.directory import as_rsa, file_of, read_key, stem_of, write_key
from relay.identity.pairs import Role
from tests.testlib.once import made_once
from tests.unit.identity.homes import NOW, Home, make_home, write_config
from tests.vectors.people import KEYS


@pytest.fixture(scope="session")
def rsa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An identity made from nothing, whose RSA keys the sites have that a test makes beside Alice, Bob and Carol."""
    with made_once(tmp_path_factory, "first") as directory:
        home = Home(directory / "first", "first")
        if not home.directory.exists():
            create_identity(
                write_config(home.directory, "first").identity_directory,
                name="first", domains=["first.example"], now=NOW,
            )  # fmt: skip
        return home.identity_directory


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Home]:
    root = tmp_path_factory.mktemp("homes")
    keys = {"alice": "alice", "bob": "bob", "carol": "eve"}
    return {name: make_home(root / name, name, _rsa_keys(root / f"{name}-rsa", whose)) for name, whose in keys.items()}


def _rsa_keys(directory: Path, name: str) -> Path:
    """Keys of the test vectors, as files of an identity: nobody else's, and made already."""
    directory.mkdir()
    for role in (Role.RSA_ENCRYPTION, Role.RSA_SIGNING):
        source = directory / "pem"
        source.touch(mode=0o600)
        source.write_bytes((KEYS / f"test-only-{name}-{role.replace('_', '-')}.key.pem").read_bytes())
        key = read_key(source, as_rsa, None)
        write_key(file_of(stem_of(directory, role, key.public_key()), "key"), key, None)
    return directory


@pytest.fixture(scope="session")
def spare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The private key that a renewal gets where making one would only take time."""
    with made_once(tmp_path_factory, "spare") as directory:
        path = directory / "rsa.key"
        if not path.exists():
            key = generate_private_key(65537, 4096)
            path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return path


@pytest.fixture
def spare_is_made(spare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next RSA keys that are made are all the spare one."""
    key = load_pem_private_key(spare.read_bytes(), None)
    monkeypatch.setattr("relay.identity.make.rsa.generate_private_key", lambda **_: key)


def _copy(home: Home, target: Path) -> Home:
    shutil.copytree(home.directory, target)
    return Home(target, home.name)


@pytest.fixture
def alice(originals: dict[str, Home], tmp_path: Path) -> Home:
    return _copy(originals["alice"], tmp_path / "alice")


@pytest.fixture
def bob(originals: dict[str, Home], tmp_path: Path) -> Home:
    return _copy(originals["bob"], tmp_path / "bob")


@pytest.fixture
def carol(originals: dict[str, Home], tmp_path: Path) -> Home:
    return _copy(originals["carol"], tmp_path / "carol")
