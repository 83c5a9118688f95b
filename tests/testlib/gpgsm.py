"""GnuPG's gpgsm, which KMail, Claws Mail and Gpg4win use, with a home of its own for somebody's key.
Standard: Debian's gpgsm; gpgsm(1). Our CA is trusted, and no CRLs are asked for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import PrivateFormat, pkcs12

from relay.smime import OwnKey
from tests.testlib.smime import ca, pem

requires_gpgsm = pytest.mark.skipif(shutil.which("gpgsm") is None, reason="gpgsm is not installed")
_OLD = PrivateFormat.PKCS12.encryption_builder().key_cert_algorithm(pkcs12.PBES.PBESv1SHA1And3KeyTripleDESCBC)
"""The only PKCS#12 that it reads."""


@dataclass(frozen=True)
class Gpgsm:
    """Somebody's; its home has a short name, since sockets are in it."""

    home: Path

    def run(self, *words: str, data: bytes = b"") -> bytes:
        """What it writes."""
        command = ["gpgsm", "--batch", "--disable-crl-checks", "--pinentry-mode", "loopback", "--passphrase-fd", "0"]
        if data:
            (self.home / "input").write_bytes(data)
            words = (*words, str(self.home / "input"))
        done = subprocess.run(
            [*command, *words], input=b"x\n", capture_output=True, check=False, env={**os.environ, "GNUPGHOME": str(self.home)}
        )  # fmt: skip
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def add(self, certificate: x509.Certificate) -> None:
        """Adds a certificate of others."""
        self.run("--import", data=pem(certificate))


@contextmanager
def gpgsm_of(own: OwnKey) -> Iterator[Gpgsm]:
    """With this key and certificate, which are gone at the end, as is its agent."""
    with tempfile.TemporaryDirectory(prefix="gpgsm-") as directory:
        gpgsm = Gpgsm(Path(directory))
        trusted = ca().certificate.fingerprint(hashes.SHA1()).hex().upper()
        (gpgsm.home / "trustlist.txt").write_text(f"{trusted} S\n")
        (gpgsm.home / "gpg-agent.conf").write_text("s2k-count 65536\n")  # else it measures how slow to be
        try:
            gpgsm.add(ca().certificate)
            bag = pkcs12.serialize_key_and_certificates(
                b"own", own.key, own.certificate, None, _OLD.hmac_hash(hashes.SHA1()).build(b"x")
            )
            gpgsm.run("--import", data=bag)
            yield gpgsm
        finally:
            subprocess.run(["gpgconf", "--homedir", directory, "--kill", "all"], check=True)
