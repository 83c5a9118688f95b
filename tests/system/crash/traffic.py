"""The mail of a crash test: many messages, each known again by its number, none of which may be seen outside.
Standard: everything comes from the seed, so that a run can be repeated.
"""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

MARK = b"nobody-else-may-read-this-line"
"""Stands in every line of every body; anywhere outside it means a leak."""
USERS = tuple(f"{level}{number}@bob.example" for level in ("otp", "aes", "pqc", "rsa") for number in (1, 2, 3))
POLICIES = {
    **{f"bob.example/otp{number}.toml": 'levels = ["otp"]\n' for number in (1, 2, 3)},
    **{f"bob.example/aes{number}.toml": 'levels = ["aes"]\n' for number in (1, 2, 3)},
    **{f"bob.example/pqc{number}.toml": 'levels = ["pqc+aes"]\n' for number in (1, 2, 3)},
    **{f"bob.example/rsa{number}.toml": 'levels = ["rsa"]\n' for number in (1, 2, 3)},
    "bob.example.toml": 'levels = ["aes"]\n',
    "alice.example.toml": 'levels = ["plaintext"]\n',
}
"""Alice's policies: the recipient's name tells the level."""


def traces() -> tuple[bytes, ...]:
    """What to look for: the mark as it is, and in base64 at each of its three positions."""
    found = [MARK]
    for shift in range(3):
        encoded = base64.b64encode(b"x" * shift + MARK)
        found.append(encoded[4 if shift else 0 : -4])
    return tuple(found)


@dataclass(frozen=True)
class Message:
    """One message: its number, whom it is for, its octets and their SHA-256."""

    number: int
    recipients: tuple[str, ...]
    octets: bytes = field(repr=False)

    @property
    def message_id(self) -> bytes:
        return message_id(self.number)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.octets).hexdigest()


def message_id(number: int) -> bytes:
    return b"<%d.crash@alice.example>" % number


def message(number: int, seed: int, largest: int) -> Message:
    """Message `number`: 1 KB to `largest` octets, most of them small, to 1 to 12 recipients."""
    chance = random.Random(f"{seed}/{number}")
    size = int(1024 * (largest / 1024) ** (chance.random() ** 2))
    recipients = chance.sample(USERS, chance.choice((1, 1, 1, 2, 2, 3, 5, 8, 12)))
    return Message(number, tuple(recipients), _octets(number, recipients, size))


def _octets(number: int, recipients: Sequence[str], size: int) -> bytes:
    header = b"\r\n".join(
        [
            b"From: Ann <ann@alice.example>",
            b"To: " + ",\r\n ".join(recipients).encode(),
            b"Subject: " + MARK,
            b"Date: Wed, 25 Nov 2026 10:00:00 +0000",
            b"Message-ID: " + message_id(number),
            b"",
            b"",
        ]
    )
    line = b"%d " % number + MARK + b" " + b"." * 30 + b"\r\n"
    return header + line * max(1, (size - len(header)) // len(line))
