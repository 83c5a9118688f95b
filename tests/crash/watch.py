"""Looks at everything that passes or lies where no plaintext may be, and at the keys of every sealed message.
Standard: only octets are looked at; nothing that the relays say of themselves is believed.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from relay import cms, mime
from relay.levels.aes import AES
from relay.levels.otp import OTP
from tests.crash import traffic

Look = Callable[[bytes], None]
END_OF_DATA = b"\r\n.\r\n"
OVERLAP = 200


class Watch:
    """`seen` has the places where plaintext was, `sealed_under` the ciphertexts' SHA-256 by key_ID."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.sealed_under: defaultdict[str, set[str]] = defaultdict(set)
        self._traces = traffic.traces()

    def at(self, place: str) -> Callable[[], Look]:
        """For a wire: looks for plaintext on each of its connections."""

        def connection() -> Look:
            before = b""

            def look(piece: bytes) -> None:
                nonlocal before
                self._look(before + piece, place)
                before = piece[-OVERLAP:]

            return look

        return connection

    def of_sealed(self, place: str) -> Callable[[], Look]:
        """For a wire with sealed mail over SMTP: notes the keys of each message that passed whole, too."""

        def connection() -> Look:
            waiting = bytearray()

            def look(piece: bytes) -> None:
                searched = max(0, len(waiting) - len(END_OF_DATA))
                waiting.extend(piece)
                while (end := waiting.find(END_OF_DATA, searched)) >= 0:
                    self._look(bytes(waiting), place)
                    self._note(bytes(waiting[:end]))
                    del waiting[: end + len(END_OF_DATA)]
                    searched = 0

            return look

        return connection

    def look_into_files(self, directory: Path) -> None:
        """Every file below the directory."""
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                self._look(path.read_bytes(), path.name)

    def _look(self, octets: bytes, place: str) -> None:
        if any(trace in octets for trace in self._traces):
            self.seen.append(place)

    def _note(self, transaction: bytes) -> None:
        begin = transaction.find(b"Content-Type: application/pkcs7-mime")
        if begin < 0:
            self.seen.append("an unsealed message")
            return
        der = mime.sealed_content(transaction[begin:] + b"\r\n")
        for key_ID in key_ids(der):
            self.sealed_under[key_ID].add(hashlib.sha256(der).hexdigest())


def key_ids(der: bytes) -> set[str]:
    """The quantum keys under which the outermost layer is sealed; none for a layer without them."""
    enveloped = cms.decode_enveloped(der)
    for level in (OTP("padme"), AES()):
        if level.recognises(enveloped):
            return {reference.key_ID for reference in level.references(enveloped)}
    return set()
