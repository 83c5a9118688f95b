"""S/MIME messages as `openssl cms` writes them: signed, encrypted, nested.
Standard: openssl-cms(1); RFC 8551.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from relay.smime import OwnKey
from tests.testlib.smime import key_pem, pem

ENTITY = (
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 7bit\r\n\r\nThe budget of the merger.\r\n"
)
CLEAR, OPAQUE = (), ("-nodetach",)


def openssl(*arguments: str, content: bytes) -> bytes:
    """Runs `openssl cms`; its output with CRLF line ends, as mail has them."""
    done = subprocess.run(["openssl", "cms", *arguments], input=content, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


@lru_cache(maxsize=256)
def signed(entity: bytes, by: OwnKey, *options: str) -> bytes:
    """A signed MIME entity; clear-signed, or with OPAQUE as one."""
    with tempfile.TemporaryDirectory() as directory:
        signer, key, chain = (Path(directory) / name for name in ("signer.pem", "key.pem", "chain.pem"))
        signer.write_bytes(pem(by.certificate))
        key.write_bytes(key_pem(by))
        chain.write_bytes(pem(*by.chain))
        more = ("-certfile", str(chain)) if by.chain else ()
        return openssl("-sign", "-signer", str(signer), "-inkey", str(key), *more, *options, content=entity)


def encrypted(entity: bytes, *to: OwnKey, cipher: str = "aes-256-cbc", options: Sequence[str] = ()) -> bytes:
    """An encrypted MIME entity for these certificates."""
    with tempfile.TemporaryDirectory() as directory:
        named: list[str] = []
        for number, each in enumerate(to):
            file = Path(directory) / f"{number}.pem"
            file.write_bytes(pem(each.certificate))
            named += ["-recip", str(file), *options]
        return openssl("-encrypt", f"-{cipher}", *named, content=entity)


def mail(
    entity: bytes, author: str = "ben@bob.example", to: str = "ann@alice.example", subject: str = "Budget"
) -> bytes:
    """A whole message: a MIME entity under the fields of a mail."""
    header = f"From: Ben <{author}>\r\nTo: {to}\r\nSubject: {subject}\r\nDate: Wed, 2 Dec 2026 12:00:00 +0000\r\n"
    return header.encode() + f"Message-ID: <{abs(hash(entity))}@bob.example>\r\n".encode() + entity
