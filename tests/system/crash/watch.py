"""Looks at everything that passes or lies where no plaintext may be, and at the keys of every sealed message.
Standard: only octets are looked at; nothing that the relays say of themselves is believed.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

from relay.formats import cms, mime
from relay.schemes.aes import AES
from relay.schemes.otp import OneTimePad
from tests.system.crash import traffic

Look = Callable[[bytes], None]
END_OF_DATA = b"\r\n.\r\n"
OVERLAP = 200


class Watch:
    """`seen` has the places where plaintext was, `sealed_under` the ciphertexts' SHA-256 by key_ID.

    `passed` has when (time.monotonic) a copy had passed whole: by site, number of the message and recipient.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.sealed_under: defaultdict[str, set[str]] = defaultdict(set)
        self.passed: defaultdict[tuple[str, int, str], list[float]] = defaultdict(list)
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

    def of_sealed(self, site: str) -> Callable[[], Look]:
        """For the wire behind a relay that seals: notes the keys of each message that passed whole, too."""

        def whole(transaction: bytes) -> None:
            self._look(transaction, f"from {site}'s relay to its Postfix")
            self._note(transaction)
            self._note_passed(site, transaction)

        return _each_transaction(whole)

    def of_opened(self, site: str) -> Callable[[], Look]:
        """For the wire behind a relay that opens, which carries plaintext."""
        return _each_transaction(partial(self._note_passed, site))

    def _note_passed(self, site: str, transaction: bytes) -> None:
        if (found := re.search(rb"^Message-ID: <([0-9]+)\.", transaction, re.MULTILINE)) is None:
            return
        for recipient in re.findall(rb"^RCPT TO:<([^>]+)>", transaction, re.MULTILINE):
            self.passed[site, int(found[1]), recipient.decode()].append(time.monotonic())

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
        digest = hashlib.sha256(der).hexdigest()  # once: a pad has a thousand keys, and nothing else goes on meanwhile
        for key_ID in key_ids(der):
            self.sealed_under[key_ID].add(digest)


def _each_transaction(whole: Callable[[bytes], None]) -> Callable[[], Look]:
    """Calls `whole` with all that was said for a mail, its content included, up to the dot behind it."""

    def connection() -> Look:
        waiting = bytearray()

        def look(piece: bytes) -> None:
            searched = max(0, len(waiting) - len(END_OF_DATA))
            waiting.extend(piece)
            while (end := waiting.find(END_OF_DATA, searched)) >= 0:
                whole(bytes(waiting[:end]))
                del waiting[: end + len(END_OF_DATA)]
                searched = 0

        return look

    return connection


def key_ids(der: bytes) -> set[str]:
    """The quantum keys under which the outermost layer is sealed; none for a layer without them."""
    enveloped = cms.decode_enveloped(der)
    for level in (OneTimePad("padme"), AES()):
        if level.recognises(enveloped):
            return {reference.key_ID for reference in level.references(enveloped)}
    return set()
