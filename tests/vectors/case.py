"""One test vector and its file: fields of text, an empty line, the CMS in base64 (or a whole message).
Standard: fields are `name: value`, in US-ASCII; `key` may come several times; what is not there has its default.

| field | value |
|---|---|
| expect | success, no key, wrong key, bad tag, bad signature, bad structure, key already used |
| level | the layers from the inside out, pqc+aes for instance |
| comment | what is special about it |
| sender | the SMTP sender; ann@alice.example where the field is missing |
| key | key_ID and octets in hexadecimal, of a key that Bob's site has |
| destroyed | key_ID of a key that Bob's site had |
| sha256 | of the original message that has to come out, where success is expected |
| form | `cms` (base64 of DER or BER follows) or `message` (a message follows as it is) |
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

DIRECTORY = Path(__file__).parent
EXPECTED = ("success", "no key", "wrong key", "bad tag", "bad signature", "bad structure", "key already used")
SENDER = "ann@alice.example"


@dataclass(frozen=True)
class Case:
    """What Bob's relay gets, and what has to come of it; `original` is None in files that were read."""

    name: str
    expect: str
    level: str
    comment: str
    content: bytes = field(repr=False)
    keys: dict[str, bytes] = field(default_factory=dict)
    destroyed: tuple[str, ...] = ()
    sender: str = SENDER
    original: bytes | None = field(default=None, repr=False)
    sha256: str = ""
    form: str = "cms"

    @property
    def message(self) -> bytes:
        """The message as it comes over SMTP."""
        if self.form == "message":
            return self.content
        text = base64.encodebytes(self.content).replace(b"\n", b"\r\n")
        return (
            b"Content-Type: application/pkcs7-mime; smime-type=authEnveloped-data\r\n"
            b"Content-Transfer-Encoding: base64\r\n\r\n" + text
        )

    def text(self) -> bytes:
        """The file."""
        lines = [f"expect: {self.expect}", f"level: {self.level}", f"comment: {self.comment}"]
        if self.sender != SENDER:
            lines.append(f"sender: {self.sender}")
        lines += [f"key: {key_ID} {octets.hex()}" for key_ID, octets in self.keys.items()]
        lines += [f"destroyed: {key_ID}" for key_ID in self.destroyed]
        if self.expect == "success":
            assert self.original is not None, self.name
            lines.append(f"sha256: {hashlib.sha256(self.original).hexdigest()}")
        lines += [f"form: {self.form}", "", ""]
        body = base64.encodebytes(self.content) if self.form == "cms" else self.content
        return "\n".join(lines).encode() + body


def read(path: Path) -> Case:
    """The case in a file."""
    head, _, body = path.read_bytes().partition(b"\n\n")
    fields: dict[str, list[str]] = {}
    for line in head.decode().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name, []).append(value.strip())
    one = {name: values[0] for name, values in fields.items()}
    keys = dict(value.rsplit(" ", 1) for value in fields.get("key", []))
    return Case(
        path.stem,
        one["expect"],
        one["level"],
        one["comment"],
        base64.b64decode(body) if one["form"] == "cms" else body,
        {key_ID: bytes.fromhex(octets) for key_ID, octets in keys.items()},
        tuple(fields.get("destroyed", ())),
        one.get("sender", SENDER),
        sha256=one.get("sha256", ""),
        form=one["form"],
    )


def read_all() -> list[Case]:
    """Every case in this directory."""
    return [read(path) for path in sorted(DIRECTORY.glob("*.txt"))]
