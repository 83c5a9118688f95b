"""Tests a KME before its settings are written: whether its files match, and which SAE it takes us for.
Standard: ETSI GS QKD 014 V1.1.1, 5.1 (both sides are authenticated); no key is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from relay.errors import ConfigError
from relay.keys import tls
from relay.keys.etsi014 import OptimizedKMClient
from relay.keys.greeting import greet
from relay.setup.answers import KMEAccess
from relay.setup.asking import read_file

MAX_BESIDE = 20
"""Maximum number of files beside the CA's that are examined."""
PATIENCE_S = 5.0
"""Timeout for the KME, in seconds: somebody is waiting, and the KME may not exist yet."""


def check_ca(path: Path) -> None:
    """Raises ConfigError if the file holds no CA certificate; root reads it as the owner of its directory."""
    read_file(path)
    tls.check_ca(path)


def check_files(ca: Path, certificate: Path, key: Path) -> None:
    """Raises ConfigError if a file is no PEM file of its kind, or the key is not the certificate's.

    Root refuses files that the owner of their directory could not read.
    """
    for path in (ca, certificate, key):
        read_file(path)
    tls.client_context(ca, certificate, key)


def pair_beside(ca: Path) -> tuple[Path, Path] | None:
    """The certificate and its private key beside the CA's file, if there is exactly one such pair."""
    others = sorted(
        path for path in ca.parent.iterdir() if path.suffix in (".pem", ".crt", ".cer", ".key") and path != ca
    )
    if len(others) > MAX_BESIDE:
        return None
    certificates = list(_certificates(others))
    pairs = [(path, key) for key, public in _keys(others) for path, holder in certificates if holder == public]
    return pairs[0] if len(pairs) == 1 else None


def _certificates(paths: list[Path]) -> Iterator[tuple[Path, PublicKeyTypes]]:
    for path in paths:
        with suppress(ConfigError, ValueError, UnsupportedAlgorithm):
            yield path, x509.load_pem_x509_certificate(read_file(path)).public_key()


def _keys(paths: list[Path]) -> Iterator[tuple[Path, PublicKeyTypes]]:
    for path in paths:
        with suppress(ConfigError, ValueError, TypeError, UnsupportedAlgorithm):
            yield path, load_pem_private_key(read_file(path), password=None).public_key()


async def look_at(kme: KMEAccess, sae_id: str, peer_sae: str | None) -> str:
    """The KME's present fault, or "". Raises ConfigError if no peer could ever open what is sealed under its keys.

    A KME that does not answer may do so later; one that takes us for another SAE will not accept this SAE ID.
    """
    client = OptimizedKMClient(
        kme.url, ca=kme.ca, certificate=kme.certificate, key=kme.key, retry_attempts=0, timeout=PATIENCE_S, name="kme"
    )
    async with client:
        answer = await greet(client, (sae_id,), peer_sae)
    if answer.another is not None and answer.another.certain:
        raise ConfigError(f"{kme.url}: {answer.trouble}")
    return answer.trouble
