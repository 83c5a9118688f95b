"""One test vector and its file: what Bob's relay knows, what arrives, and what has to come of it.
Standard: README.md beside this file says what each field means; a field that is not there has its default.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

DIRECTORY = Path(__file__).parent
EXPECTED = (
    "success", "bad structure", "not for us", "unknown peer", "not accepted", "key destroyed", "key used", "no key",
    "bad tag", "bad signature", "not named", "outside window", "replayed",
)  # fmt: skip
SENDER, RECIPIENT = "ann@alice.example", "ben@bob.example"
NOW = datetime(2026, 11, 25, 10, tzinfo=UTC)
_TIME = "%Y-%m-%dT%H:%M:%SZ"


class Name(NamedTuple):
    """What a quantum key is called."""

    group: str
    sae: str
    key_ID: str


class Binding(NamedTuple):
    """What a key has opened: ciphertexts (fingerprints, 32 octets each) at one level."""

    name: Name
    level: str
    fingerprints: tuple[bytes, ...]


class Seen(NamedTuple):
    """A mail that was opened before, and who has it."""

    sae: str
    id: bytes
    fingerprint: bytes
    mailboxes: tuple[str, ...] = ()


class Peer(NamedTuple):
    """What Bob's configuration says of a peer."""

    name: str
    sae: str
    domains: str
    groups: str
    accept: str = "otp,aes,pqc,rsa"
    forwards: str = ""
    messages: int = 1


ALICE = Peer("alice", "2", "alice.example", "alice-bob")


def alices(keys: Mapping[str, bytes]) -> dict[Name, bytes]:
    """Keys by key_ID that are Alice's and Bob's, by their whole name."""
    return {Name("alice-bob", "2", key_ID): key for key_ID, key in keys.items()}


@dataclass(frozen=True)
class Case:
    """One file; `original` is None in cases that were read, `due` the arriving recipients who get the original."""

    name: str
    expect: str
    level: str
    comment: str
    content: bytes = field(repr=False)
    keys: Mapping[Name, bytes] = field(default_factory=dict)
    now: datetime = NOW
    peers: tuple[Peer, ...] = (ALICE,)
    groups: Mapping[str, str] = field(default_factory=lambda: {"alice-bob": "both"})
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    secrets: tuple[tuple[str, bytes, bytes], ...] = ()
    destroyed: tuple[Name, ...] = ()
    bound: tuple[Binding, ...] = ()
    seen: tuple[Seen, ...] = ()
    sender: str = SENDER
    recipients: tuple[str, ...] = (RECIPIENT,)
    by: str = "alice"
    sealed_sender: str = SENDER
    due: tuple[str, ...] = (RECIPIENT,)
    served: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    binds: tuple[Binding, ...] = ()
    fingerprint: bytes = b""
    original: bytes | None = field(default=None, repr=False)
    sha256: str = ""
    form: str = "cms"

    @property
    def message(self) -> bytes:
        """The message as it comes over SMTP."""
        return self.content if self.form == "message" else message(self.content)

    def text(self) -> bytes:
        """The file."""
        whole = self
        if self.original is not None:
            whole = replace(self, sha256=hashlib.sha256(self.original).hexdigest())
        lines = [f"{name}: {value}".rstrip() for name, value in (*whole._given(), *whole._expected())]
        body = base64.encodebytes(self.content) if self.form == "cms" else self.content
        return "\n".join([*lines, f"form: {self.form}", "", ""]).encode() + body

    def _given(self) -> Iterator[tuple[str, str]]:
        yield from (("expect", self.expect), ("level", self.level), ("comment", self.comment))
        if self.now != NOW:
            yield "now", self.now.strftime(_TIME)
        if self.peers != (ALICE,):
            yield from (("peer", _written(peer)) for peer in self.peers)
        if self.groups != {"alice-bob": "both"}:
            yield from (("group", f"{name} use={use}") for name, use in self.groups.items())
        yield from (("alias", " ".join((name, *mailboxes))) for name, mailboxes in self.aliases.items())
        yield from (("secret", f"{kem} {key.hex()} {secret.hex()}") for kem, key, secret in self.secrets)
        yield from (("key", f"{' '.join(name)} {octets.hex()}") for name, octets in self.keys.items())
        yield from (("destroyed", " ".join(name)) for name in self.destroyed)
        yield from (("bound", _binding(bound)) for bound in self.bound)
        for seen in self.seen:
            yield "seen", " ".join((seen.sae, seen.id.hex(), seen.fingerprint.hex(), *seen.mailboxes))
        if self.sender != SENDER:
            yield "sender", self.sender
        if self.recipients != (RECIPIENT,):
            yield from (("recipient", recipient) for recipient in self.recipients)

    def _expected(self) -> Iterator[tuple[str, str]]:
        yield from (("binds", _binding(binds)) for binds in self.binds)
        if self.expect != "success":
            return
        assert self.sha256, self.name
        assert self.fingerprint, self.name
        yield from (("by", self.by), ("from", self.sealed_sender))
        for name, mailboxes in (("due", self.due), ("served", self.served), ("aside", self.aside)):
            yield from ((name, mailbox) for mailbox in mailboxes)
        yield from (("sha256", self.sha256), ("fingerprint", self.fingerprint.hex()))


def message(content: bytes) -> bytes:
    """A message around CMS, with the fewest fields."""
    return (
        b"Content-Type: application/pkcs7-mime; smime-type=authEnveloped-data\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(content).replace(b"\n", b"\r\n")
    )


def read(path: Path) -> Case:
    """The case in a file."""
    head, _, body = path.read_bytes().partition(b"\n\n")
    fields: dict[str, list[str]] = {}
    for line in head.decode().split("\n"):
        name, _, value = line.partition(":")
        fields.setdefault(name, []).append(value.removeprefix(" "))
    one = {name: values[0] for name, values in fields.items()}

    def words(name: str) -> list[list[str]]:
        return [value.split(" ") for value in fields.get(name, [])]

    return Case(
        path.stem,
        one["expect"],
        one["level"],
        one["comment"],
        base64.b64decode(body) if one["form"] == "cms" else body,
        {Name(*name): bytes.fromhex(octets) for *name, octets in words("key")},
        datetime.strptime(one["now"], _TIME).replace(tzinfo=UTC) if "now" in one else NOW,
        tuple(_peer(each) for each in words("peer")) or (ALICE,),
        {name: use.removeprefix("use=") for name, use in words("group")} or {"alice-bob": "both"},
        {name: tuple(mailboxes) for name, *mailboxes in words("alias")},
        tuple((kem, bytes.fromhex(key), bytes.fromhex(secret)) for kem, key, secret in words("secret")),
        tuple(Name(*name) for name in words("destroyed")),
        tuple(_bound(words("bound"))),
        tuple(Seen(sae, bytes.fromhex(its), bytes.fromhex(of), tuple(has)) for sae, its, of, *has in words("seen")),
        one.get("sender", SENDER),
        tuple(fields.get("recipient", (RECIPIENT,))),
        one.get("by", ""),
        one.get("from", ""),
        tuple(fields.get("due", ())),
        tuple(fields.get("served", ())),
        tuple(fields.get("aside", ())),
        tuple(_bound(words("binds"))),
        bytes.fromhex(one.get("fingerprint", "")),
        sha256=one.get("sha256", ""),
        form=one["form"],
    )


@cache
def read_all() -> tuple[Case, ...]:
    """Every case in this directory."""
    return tuple(read(path) for path in sorted(DIRECTORY.glob("*.txt")))


def _written(peer: Peer) -> str:
    name, *values = (str(value) for value in peer)
    return " ".join([name, *(f"{part}={value}" for part, value in zip(Peer._fields[1:], values, strict=True))])


def _peer(words: list[str]) -> Peer:
    name, *given = words
    parts = dict(part.split("=", 1) for part in given)
    messages = int(parts.pop("messages", "1"))
    return Peer(name, **parts, messages=messages)


def _binding(binding: Binding) -> str:
    return " ".join((*binding.name, binding.level, *(each.hex() for each in binding.fingerprints)))


def _bound(lines: Iterable[list[str]]) -> Iterator[Binding]:
    for group, sae, key_ID, level, *fingerprints in lines:
        yield Binding(Name(group, sae, key_ID), level, tuple(bytes.fromhex(each) for each in fingerprints))
