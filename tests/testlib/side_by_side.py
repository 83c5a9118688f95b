"""The relay and the independent reader of tests/reader, given the same message as the same Bob: what comes of it at each.
Standard: the words are those of tests/vectors/README.md. The relay is a black box here: its sealing, and its opening over a store.
"""

from __future__ import annotations

import asyncio
import atexit
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import cast

from relay.config import Config, load_config
from relay.errors import (
    BadSignature,
    BadStructure,
    BadTag,
    KeyDestroyed,
    KeyNotFound,
    KeyUsed,
    MalformedMessage,
    NotAccepted,
    NotForUs,
    NotNamed,
    OutsideWindow,
    RelayError,
    Replayed,
    UnknownPeer,
    UnknownSigner,
)
from relay.formats import mime
from relay.formats.cms import SealedEnvelope
from relay.formats.mailbox import folded_mailbox
from relay.journey.opening import MailOpener
from relay.journey.opening.layers import Layers
from relay.keys import Key
from relay.keys.group import KMEGroup
from relay.keys.ring import KeyRing, PeerKeys
from relay.mail import Recipient
from relay.schemes import Parties, Scheme
from relay.schemes.aes import AES
from relay.schemes.otp import OneTimePad
from relay.schemes.pqc import PQC
from relay.schemes.rsa import RSA
from tests.reader import Delivered, Held, Memory, OneKey, PassedOn, Site, receive, vector
from tests.testlib.keys import MemoryKeys
from tests.testlib.wiped_store import WipedStore, wiped_store
from tests.vectors.people import Person, person
from tests.vectors.settings import CONFIG

KINDS: Mapping[type[RelayError], str] = {
    BadStructure: "bad structure",
    MalformedMessage: "bad structure",
    NotForUs: "not for us",
    UnknownPeer: "unknown peer",
    NotAccepted: "not accepted",
    KeyDestroyed: "key destroyed",
    KeyUsed: "key used",
    KeyNotFound: "no key",
    BadTag: "bad tag",
    BadSignature: "bad signature",
    UnknownSigner: "bad signature",
    NotNamed: "not named",
    OutsideWindow: "outside window",
    Replayed: "replayed",
}
LEVELS: Mapping[str, Scheme] = {"otp": OneTimePad(), "aes": AES(), "pqc": PQC(), "rsa": RSA()}
PROTECTIONS = ("otp", "aes", "pqc", "rsa", "pqc+aes", "rsa+aes")
GROUP, MASTER = "alice-bob", "2"
SENDER, BEN = "ann@alice.example", "ben@bob.example"


@dataclass(frozen=True)
class SealedSample:
    """A message as it is sent, the CMS in it, and the keys that open it."""

    original: bytes
    der: bytes
    keys: Mapping[OneKey, bytes]

    def message(self, der: bytes | None = None) -> bytes:
        """The message around this CMS, or around another."""
        return mime.sealed_message(self.original, self.der if der is None else der)


@dataclass(frozen=True)
class Came:
    """What came of a message: the kind, and where it is "success" what was delivered to whom."""

    kind: str
    original: bytes = b""
    sender: str = ""
    due: frozenset[str] = frozenset()
    aside: frozenset[str] = field(default=frozenset())

    @property
    def opened(self) -> bool:
        """Whether anything was released."""
        return self.kind == "success"


async def seal(
    original: bytes, protection: str, *, sender: str = SENDER, recipients: tuple[str, ...] = (BEN,), pad_key: int = 4096
) -> SealedSample:
    """As Alice's relay does."""
    keys = MemoryKeys(pad_key=pad_key)
    alice, bob = _person("alice"), _person("bob")
    parties = Parties(MASTER, "1", "bob", alice.identity, bob.certificates)
    now = datetime.now(UTC).replace(microsecond=0)
    folded = tuple(map(folded_mailbox, recipients))
    envelope = SealedEnvelope(MASTER, "1", protection, now, folded_mailbox(sender), folded)
    content = mime.wrap_payload(original, envelope.encode())
    der = b""
    for name in protection.split("+"):
        der = (await LEVELS[name].seal(content, parties, keys)).der
        content = mime.wrap_enveloped(der)
    return SealedSample(original, der, {OneKey(GROUP, MASTER, name): key.key for name, key in keys.issued.items()})


def by_reader(message: bytes, keys: Mapping[OneKey, bytes], recipients: Sequence[str] = (BEN,)) -> Came:
    """What the reader makes of it."""
    outcome = receive(message, _site(), keys, Memory(), datetime.now(UTC), recipients)
    match outcome:
        case Delivered():
            due, aside = frozenset(outcome.recipients), frozenset(outcome.aside)
            return Came("success", outcome.original, outcome.sender, due, aside)
        case PassedOn():
            return Came("not for us")
        case Held():
            return Came("no key")
    return Came(outcome.kind)


def by_relay(message: bytes, keys: Mapping[OneKey, bytes], recipients: Sequence[str] = (BEN,)) -> Came:
    """What the relay makes of it, with a store that knows nothing yet."""
    runner, stores = _stores()
    return runner.run(_by_relay(stores, message, keys, recipients))


async def _by_relay(
    stores: WipedStore, message: bytes, keys: Mapping[OneKey, bytes], recipients: Sequence[str]
) -> Came:
    bob, certificates = _person("bob"), {"alice": _person("alice").certificates}
    async with stores.empty() as store:
        groups = cast(Mapping[str, KMEGroup], {GROUP: _KME(keys)})
        ring = KeyRing("1", groups, {"alice": PeerKeys(MASTER, (GROUP,))}, received=store.received)
        layers = Layers(_config(), LEVELS, ring, bob.identity, certificates)
        opener = MailOpener(lambda: layers, store.received, store.deliveries)
        try:
            opened = await opener.open(message, [Recipient(each).mailbox for each in recipients])
        except RelayError as error:
            return Came(KINDS[type(error)])
    if opened is None:
        return Came("not for us")
    if not opened.due:
        return Came("not named")
    due, aside = frozenset(opened.due), frozenset(opened.strangers)
    return Came("success", opened.original, opened.envelope.sender, due, aside)


class _KME:
    """A group of key management entities that has these keys and no others."""

    pools = ()
    refusal = ""

    def __init__(self, keys: Mapping[OneKey, bytes]) -> None:
        self._keys = keys
        self._keep: Callable[[str, Mapping[str, bytes]], Awaitable[None]] | None = None

    def keep_in(self, put: Callable[[str, Mapping[str, bytes]], Awaitable[None]], ready: object) -> None:
        """Where keys are stored before they are used."""
        self._keep = put

    async def fetch(
        self, master_sae: str, key_IDs: Sequence[str], *, patient: bool = True, elsewhere: object = None
    ) -> dict[str, Key]:
        """Those of the keys that it has."""
        names = {key_ID: OneKey(GROUP, master_sae, key_ID) for key_ID in key_IDs}
        found = {key_ID: Key(key_ID, self._keys[name]) for key_ID, name in names.items() if name in self._keys}
        if found and self._keep is not None:
            await self._keep(master_sae, {key_ID: key.key for key_ID, key in found.items()})
        return found


@cache
def _person(name: str) -> Person:
    return person(name)


@cache
def _site() -> Site:
    return vector.read(vector.VECTORS / "aes-plain.txt").site


@cache
def _directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="side-by-side-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


@cache
def _config() -> Config:
    (_directory() / "relay.toml").write_text(CONFIG)
    (_directory() / "policies").mkdir()
    return load_config(_directory() / "relay.toml")


@cache
def _stores() -> tuple[asyncio.Runner, WipedStore]:
    """A store, and the loop that it is used in; both are there until the process ends: then threads can do no more."""
    runner = asyncio.Runner()
    return runner, runner.run(_open_for_good().enter_async_context(wiped_store(_directory())))


@cache
def _open_for_good() -> AsyncExitStack:
    return AsyncExitStack()
