"""liboqs as it is: the native library where it is installed, else the same as WebAssembly; vectors for both.
The vectors in tests/data/kems were made by the native library 0.16.0, and each implementation opens them.
"""

from __future__ import annotations

import base64
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA87PrivateKey, MLDSA87PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PrivateKey, MLKEM1024PublicKey

from relay.formats.cms import FURTHER_KEMS, KEMS
from relay.identity import liboqs
from tests.testlib import wasm_oqs

ROOT = Path(__file__).parents[3]
SAME_IN_BOTH_RELEASES = ("frodokem-1344-shake", "classic-mceliece-6688128")
"""HQC has changed between 0.15, which there is as WebAssembly, and 0.16, which our format wants."""


@pytest.fixture(scope="module")
def as_wasm() -> Iterator[Any]:
    """liboqs as WebAssembly."""
    if cause := wasm_oqs.missing():
        pytest.skip(cause)
    node = wasm_oqs.Node()
    yield wasm_oqs.wasm_oqs(node)
    node.close()


@pytest.fixture
def real(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `oqs`, which the relay uses."""
    if not liboqs.missing():
        return importlib.import_module("oqs")
    library = request.getfixturevalue("as_wasm")
    monkeypatch.setattr(liboqs, "_load", lambda: library)
    return library


def vector(kem: str) -> tuple[bytes, bytes, bytes]:
    """Private key, ciphertext, shared secret."""
    texts = json.loads((ROOT / f"tests/data/kems/{kem}.json").read_text())
    private_key, ciphertext = (base64.b64decode("".join(texts[name])) for name in ("private_key", "ciphertext"))
    return private_key, ciphertext, bytes.fromhex(texts["shared_secret"])


def test_loading_the_library_prints_nothing() -> None:
    """What `seal` writes to standard output is a message."""
    script = "from relay.identity import liboqs; liboqs.missing()"
    said = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, cwd=ROOT, check=False)
    assert (said.returncode, said.stdout, said.stderr) == (0, b"", b"")


@pytest.mark.parametrize("kem", SAME_IN_BOTH_RELEASES)
def test_the_second_implementation_opens_what_the_native_library_made(
    as_wasm: Any, kem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liboqs, "_load", lambda: as_wasm)
    private_key, ciphertext, secret = vector(kem)
    assert liboqs.decapsulate(kem, private_key, ciphertext) == secret
    changed = bytearray(ciphertext)
    changed[100] ^= 1
    assert liboqs.decapsulate(kem, private_key, bytes(changed)) != secret


def test_a_release_with_an_older_revision_of_a_kem_is_refused(as_wasm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liboqs, "_load", lambda: as_wasm)
    assert "(0.15.1) does not have it as our format wants it" in liboqs.unavailable("hqc-256")


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("kem", FURTHER_KEMS)
def test_each_kem_is_what_the_format_says(kem: str) -> None:
    if kem not in SAME_IN_BOTH_RELEASES and (cause := liboqs.unavailable(kem)):
        pytest.skip(cause)
    ours = liboqs.generate(kem)
    secret, ciphertext = liboqs.encapsulate(kem, ours.public_key)
    assert (len(ours.public_key), len(ciphertext)) == (KEMS[kem].public_key_octets, KEMS[kem].ciphertext_octets)
    assert liboqs.decapsulate(kem, ours.private_key, ciphertext) == secret
    assert liboqs.encapsulate(kem, ours.public_key)[0] != secret
    private_key, ciphertext, secret = vector(kem)
    assert liboqs.decapsulate(kem, private_key, ciphertext) == secret


def test_ml_kem_of_liboqs_and_of_cryptography_agree_both_ways(real: Any) -> None:
    private = MLKEM1024PrivateKey.generate()
    with real.KeyEncapsulation("ML-KEM-1024") as kem:
        ciphertext, secret = kem.encap_secret(private.public_key().public_bytes_raw())
        assert private.decapsulate(ciphertext) == secret
        public = MLKEM1024PublicKey.from_public_bytes(kem.generate_keypair())
        secret, ciphertext = public.encapsulate()
        assert kem.decap_secret(ciphertext) == secret


def test_ml_dsa_of_liboqs_and_of_cryptography_agree_both_ways(real: Any) -> None:
    private = MLDSA87PrivateKey.generate()
    with real.Signature("ML-DSA-87") as scheme:
        ours = private.sign(b"message")
        assert scheme.verify(b"message", ours, private.public_key().public_bytes_raw())
        assert not scheme.verify(b"massage", ours, private.public_key().public_bytes_raw())
        public = MLDSA87PublicKey.from_public_bytes(scheme.generate_keypair())
        public.verify(scheme.sign(b"message"), b"message")
