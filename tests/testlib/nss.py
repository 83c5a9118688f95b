"""NSS, the engine of Thunderbird, by its own programs: a database of keys and certificates, and what cmsutil does with it.
Standard: Debian's libnss3-tools; certutil(1), pk12util(1), cmsutil(1).
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12

from relay.smime import OwnKey
from tests.testlib.smime import ca, pem

requires_nss = pytest.mark.skipif(shutil.which("cmsutil") is None, reason="libnss3-tools is not installed")


@dataclass(frozen=True)
class NSS:
    """Somebody's database in a new `directory`, which trusts our CA; "own" is their certificate in it."""

    directory: Path

    @classmethod
    def of(cls, directory: Path, own: OwnKey) -> NSS:
        """The database with this key and certificate."""
        directory.mkdir()
        made = cls(directory)
        made.run("certutil", "-N", "--empty-password")
        made.add("ca", ca().certificate, trust=",C,")
        bag = pkcs12.serialize_key_and_certificates(
            b"own", own.key, own.certificate, None, BestAvailableEncryption(b"x")
        )
        (directory / "own.p12").write_bytes(bag)
        made.run("pk12util", "-i", "own.p12", "-W", "x")
        return made

    def add(self, name: str, certificate: x509.Certificate, trust: str = ",,") -> None:
        """Adds a certificate of others."""
        (self.directory / "added.pem").write_bytes(pem(certificate))
        self.run("certutil", "-A", "-n", name, "-t", trust, "-i", "added.pem")

    def run(self, program: str, *words: str, data: bytes = b"") -> bytes:
        """What a program of NSS writes, in the directory of the database."""
        command = [program, "-d", "sql:.", *words]
        done = subprocess.run(command, input=data, capture_output=True, check=False, cwd=self.directory)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout
