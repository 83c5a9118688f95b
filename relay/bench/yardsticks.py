"""What the levels are measured beside: the bare cryptography of each, and the command `openssl cms`.
The primitives have the parameters of the levels (relay/levels); OpenSSL has no one-time pad and, up to 3.5, no ML-KEM
recipients, so that its pqc is a signature alone.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import time
from pathlib import Path

import pybase64
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.poly1305 import Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from relay.identity import Identity

_KEY = ["-secretkey", "00" * 32, "-secretkeyid", "6964"]
_ENCRYPT = ["-encrypt", "-aes-256-gcm"]
_OAEP = ["-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256"]
_PSS = ["-keyopt", "rsa_padding_mode:pss", "-keyopt", "rsa_pss_saltlen:32"]


def reference(message: bytes) -> None:
    """Base64 in lines by pybase64, and AES-256-GCM."""
    pybase64.encodebytes(message)
    _gcm(message)


def bare(level: str, message: bytes, identity: Identity) -> None:
    """What level `otp`, `aes`, `pqc` or `rsa` does to seal for this site."""
    match level:
        case "otp":
            mask = int.from_bytes(message)
            Poly1305.generate_tag(bytes(32), (int.from_bytes(message) ^ mask).to_bytes(len(message)))
            return
        case "pqc":
            identity.signing.private_key.sign(hashlib.sha512(message).digest())
            identity.kem.private_key.public_key().encapsulate()
        case "rsa":
            pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
            oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
            identity.rsa_signing.private_key.sign(message, pss, hashes.SHA256())
            identity.rsa_encryption.private_key.public_key().encrypt(bytes(32), oaep)
    _gcm(message)


def _gcm(message: bytes) -> None:
    AESGCM(bytes(32)).encrypt(bytes(12), message, None)


class OpenSSL:
    """OpenSSL with a site's keys, in files of `directory`; without the command all times are None."""

    def __init__(self, directory: Path, identity: Identity) -> None:
        self._directory = directory
        for name, pair in (
            ("signing", identity.signing),
            ("rsa_signing", identity.rsa_signing),
            ("rsa_encryption", identity.rsa_encryption),
        ):
            key = pair.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            (directory / f"{name}.key").write_bytes(key)
            (directory / f"{name}.pem").write_bytes(pair.certificate.public_bytes(Encoding.PEM))

    def times(self, level: str, message: bytes, rounds: int) -> tuple[float | None, float | None]:
        """Seconds to seal and to open, the least of `rounds`; None where this OpenSSL cannot do it."""
        seal, open_ = self._commands(level)
        if not seal or not shutil.which("openssl"):
            return None, None
        (self._directory / "0").write_bytes(message)
        times: list[tuple[float, float]] = []
        for _ in range(rounds):
            sealed, opened = self._run(seal, 0), self._run(open_, len(seal))
            if sealed is None or opened is None:
                return sealed, opened
            times.append((sealed, opened))
        return min(first for first, _ in times), min(second for _, second in times)

    def _commands(self, level: str) -> tuple[list[list[str]], list[list[str]]]:
        """What seals, and what opens, each reading what the one before it wrote."""
        verify = ["-verify", "-noverify", "-inform"]
        match level:
            case "aes":
                return [[*_ENCRYPT, *_KEY]], [["-decrypt", *_KEY]]
            case "pqc":
                return [[*self._sign("signing"), "-md", "sha512"]], [[*verify, "SMIME"]]
            case "rsa":
                recipient = str(self._directory / "rsa_encryption")
                sign = [*self._sign("rsa_signing"), "-md", "sha256", *_PSS, "-outform", "DER"]
                decrypt = ["-decrypt", "-recip", f"{recipient}.pem", "-inkey", f"{recipient}.key"]
                return [sign, [*_ENCRYPT, "-recip", f"{recipient}.pem", *_OAEP]], [decrypt, [*verify, "DER"]]
        return [], []

    def _sign(self, name: str) -> list[str]:
        stem = str(self._directory / name)
        return ["-sign", "-nodetach", "-signer", f"{stem}.pem", "-inkey", f"{stem}.key"]

    def _run(self, commands: list[list[str]], number: int) -> float | None:
        """Seconds that these commands take one after the other, from file `number` on; None where one fails."""
        began = time.perf_counter()
        for step, arguments in enumerate(commands, number):
            source, target = (str(self._directory / str(name)) for name in (step, step + 1))
            command = ["openssl", "cms", "-binary", *arguments, "-in", source, "-out", target]
            if subprocess.run(command, capture_output=True, check=False).returncode:  # noqa: S603 - our own words
                return None
        return time.perf_counter() - began
