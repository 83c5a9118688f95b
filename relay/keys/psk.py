"""TLS to a key provider under a pre-shared key, as in routers' SKIP: each side proves possession of the key.
Standard: draft-cisco-skip; RFC 8446, 4.2.11 and RFC 9257 (TLS 1.3); RFC 5487 and RFC 5489 (TLS 1.2). No
certificates: a provider that presents one instead of the key is refused.
"""

from __future__ import annotations

import os
import ssl
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from relay.errors import ConfigError
from relay.files import open_regular
from relay.files.acl import named_in_acl
from relay.keys.tls import CertificateEnd, FileTLS, set_ciphers

MIN_OCTETS, MAX_OCTETS = 16, 64
"""Length of a pre-shared key, in bytes. RFC 9257 recommends 128 bits of entropy at least."""
CIPHERS = (
    "ECDHE-PSK-CHACHA20-POLY1305:DHE-PSK-AES256-GCM-SHA384:DHE-PSK-CHACHA20-POLY1305:ECDHE-PSK-AES256-CBC-SHA384:"
    "DHE-PSK-AES256-CBC-SHA384"
)
"""TLS 1.2 suites, all with an ephemeral exchange (forward secrecy)."""


@dataclass(frozen=True, slots=True)
class PSK:
    """A pre-shared key: `identity` names it to the provider, `file` holds it in hexadecimal."""

    identity: str
    file: Path | str

    def read(self) -> bytes:
        """The key. Raises ConfigError, without the key in its text."""
        try:
            with open(self.file, "rb", opener=open_regular) as file:
                mode, content = os.fstat(file.fileno()).st_mode, file.read(4 * MAX_OCTETS)
                others = named_in_acl(file.fileno(), os.R_OK | os.W_OK, (0, os.geteuid()))
        except OSError as error:
            raise ConfigError(f"{self.file}: cannot be read: {error.strerror}") from error
        if mode & stat.S_IRWXO:
            raise ConfigError(
                f"{self.file}: every user of this machine may use it; make it one of its owner and group alone"
            )
        if others:
            raise ConfigError(f"{self.file}: by its ACL {others} may use it; make it one of its owner and group alone")
        try:
            key = bytes.fromhex(content.decode("ascii"))
        except ValueError:
            raise ConfigError(f"{self.file}: the pre-shared key is not written in hexadecimal") from None
        if not MIN_OCTETS <= len(key) <= MAX_OCTETS:
            raise ConfigError(
                f"{self.file}: {len(key)} bytes; a pre-shared key has {MIN_OCTETS} to {MAX_OCTETS} of them, and 32 are "
                "right: openssl rand -hex 32"
            )
        return key


class PSKTLS(FileTLS):
    """The TLS settings for one provider under a pre-shared key, which does not expire."""

    def __init__(self, psk: PSK, ciphers: str | None = None) -> None:
        """`ciphers` as in TLSRules. Raises ConfigError if the file, or this Python, is unusable."""
        self._psk = psk
        self._ciphers = ciphers
        super().__init__(Path(psk.file))

    def _read(self) -> ssl.SSLContext:
        return _context(self._psk.identity, self._psk.read(), self._ciphers)

    def ends(self) -> list[CertificateEnd]:
        """Empty: there is no certificate."""
        return []


class _KeyedTLS(ssl.SSLObject):
    """A TLS connection whose handshake fails unless both sides used the pre-shared key."""

    def do_handshake(self) -> None:
        super().do_handshake()
        suite = (self.cipher() or ("",))[0]
        # In TLS 1.3 the suite does not show it; without a session ticket only a PSK makes the session "reused".
        if not (self.session_reused if self.version() == "TLSv1.3" else "PSK" in suite):
            raise ssl.SSLCertVerificationError(1, "the provider did not show that it has the pre-shared key")


def _context(identity: str, key: bytes, ciphers: str | None) -> ssl.SSLContext:
    if sys.version_info < (3, 13):
        version = ".".join(map(str, sys.version_info[:2]))
        raise ConfigError(
            f"psk_file: TLS with a pre-shared key needs Python 3.13 or later, and this is {version}: use ca, "
            "certificate and key, or another Python"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Certificates are still required, and no CA is trusted: any server certificate fails the handshake.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    set_ciphers(context, ciphers or CIPHERS)
    context.set_psk_client_callback(lambda _hint: (identity, key))
    context.sslobject_class = _KeyedTLS
    return context
