"""Every test vector through the opener, its key ring and a real store: what has to open opens, what must not does not.
Standard: relay/FORMAT.md; tests/vectors/README.md says what a file holds.
"""

from __future__ import annotations

import functools
import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
import pytest_asyncio

from relay.config import Config, load_config
from relay.errors import (
    BadSignature,
    BadStructure,
    BadTag,
    CannotOpen,
    KeyDestroyed,
    KeyNotFound,
    KeyUsed,
    NotAccepted,
    NotForUs,
    NotNamed,
    OutsideWindow,
    RelayError,
    Replayed,
    UnknownPeer,
    UnknownSigner,
)
from relay.formats import cms
from relay.formats.cms import KeyUse
from relay.identity import liboqs
from relay.identity.further import FurtherKEMPair
from relay.journey.opening import MailOpener, Opened
from relay.journey.opening.layers import Layers
from relay.keys import Key
from relay.keys.group import KMEGroup
from relay.keys.ring import KeyRing, PeerKeys
from relay.mail import OpenedMail
from relay.schemes.all import all_schemes
from relay.store.received_table import Bound, KeyName, find
from relay.store.store import Store
from tests.testlib.received import mark_used
from tests.testlib.wiped_store import WipedStore, wiped_store
from tests.vectors.case import DIRECTORY, EXPECTED, Binding, Case, Name, read_all
from tests.vectors.people import KEYS, person
from tests.vectors.settings import configuration

ERRORS: dict[str, tuple[type[RelayError], ...]] = {
    "bad structure": (BadStructure,),
    "not for us": (NotForUs,),
    "unknown peer": (UnknownPeer,),
    "not accepted": (NotAccepted,),
    "key destroyed": (KeyDestroyed,),
    "key used": (KeyUsed,),
    "no key": (KeyNotFound,),
    "bad tag": (BadTag,),
    "bad signature": (BadSignature, UnknownSigner),
    "not named": (NotNamed,),
    "outside window": (OutsideWindow,),
    "replayed": (Replayed,),
}
TOLD = ("bad structure", "unknown peer", "not accepted", "not for us")
"""What may go wrong before a key is looked at, so that it may be told; all else is answered alike."""
CASES = read_all()
LEVELS = all_schemes()


class NoKME:
    """A KME group that gives what one case says, and remembers what it was asked for."""

    pools = ()
    refusal = ""

    def __init__(self, group: str, keys: Mapping[Name, bytes]) -> None:
        self._group = group
        self._keys = keys
        self._keep: Callable[[str, Mapping[str, bytes]], Awaitable[None]] | None = None
        self.asked: list[str] = []

    def keep_in(self, put: Callable[[str, Mapping[str, bytes]], Awaitable[None]], ready: object) -> None:
        """Where keys are stored before they are used."""
        self._keep = put

    async def fetch(
        self, master_sae: str, key_IDs: Sequence[str], *, patient: bool = True, elsewhere: object = None
    ) -> dict[str, Key]:
        """Those of the keys that it has."""
        self.asked += key_IDs
        names = {key_ID: Name(self._group, master_sae, key_ID) for key_ID in key_IDs}
        found = {key_ID: self._keys[name] for key_ID, name in names.items() if name in self._keys}
        if found and self._keep is not None:
            await self._keep(master_sae, found)
        return {key_ID: Key(key_ID, octets) for key_ID, octets in found.items()}


class Bob:
    """Bob's relay as a case has it."""

    def __init__(self, case: Case, config: Config, store: Store) -> None:
        self.case = case
        self.store = store
        self.kmes = {group: NoKME(group, case.keys) for group in case.groups}
        peers = {name: PeerKeys(peer.sae_id, peer.kme_groups) for name, peer in config.peers.items()}
        ring = KeyRing("1", cast(Mapping[str, KMEGroup], self.kmes), peers, received=store.received)
        pinned = {name: person(name).certificates for name in config.peers if (KEYS / f"{name}-ca.crt.pem").exists()}
        identity = replace(person("bob").identity, further_kems=tuple(_pair(*each) for each in case.secrets))
        layers = Layers(config, LEVELS, ring, identity, pinned)
        self.opener = MailOpener(lambda: layers, store.received, store.deliveries, clock=lambda: case.now)

    async def remember(self) -> None:
        """What came before the case."""
        for name in self.case.destroyed:
            await self.store.received.put(name.group, name.sae, {name.key_ID: b"\1"})
            await mark_used(self.store, name.group, name.sae, [name.key_ID], keep_for=-1)
        if self.case.destroyed:
            assert await self.store.received.destroy_expired() == len(self.case.destroyed)
        for name, level, fingerprints in self.case.bound:
            octets = next((key for given, key in self.case.keys.items() if _same(given, name)), b"\1" * 32)
            await self.store.received.put(name.group, name.sae, {name.key_ID: octets})
            for fingerprint in fingerprints:
                use = KeyUse(level, fingerprint, len(fingerprints))
                await self.store.deliveries.admit([Bound(name.group, name.sae, (name.key_ID,), use)])
        for sae, id_, fingerprint, mailboxes in self.case.seen:
            arrived = OpenedMail(sae, id_, fingerprint, self.case.now.timestamp() + 1e9, mailboxes)
            await self.store.deliveries.admit([], arrived)
            await self.store.deliveries.settle_opened(arrived, mailboxes)

    async def opens(self) -> Opened | None:
        """What becomes of the message."""
        return await self.opener.open(self.case.message, _mailboxes(self.case.recipients))

    async def bindings(self) -> set[Binding]:
        """What each key of the case has opened by now."""
        names = {*self.case.keys, *(bound.name for bound in self.case.bound)}
        rows = await self.store.deliveries._database.reading(lambda at: find(at, [KeyName(*name) for name in names]))
        return {
            Binding(Name(name.group, name.master_sae, name.key_ID), row.level, _cut(row.bound_to))
            for name, row in rows.items()
            if row.level is not None and row.bound_to
        }


def _pair(kem: str, identifier: bytes, secret: bytes) -> FurtherKEMPair:
    """A key pair that is called as the case says, and is the shared secret itself."""
    pair = FurtherKEMPair(kem, datetime(2026, 1, 1, tzinfo=UTC), b"", secret)
    pair.__dict__["identifier"] = identifier
    return pair


def _same(name: Name, other: Name) -> bool:
    return KeyName(*name).place("") == KeyName(*other).place("")


def _cut(bound_to: bytes) -> tuple[bytes, ...]:
    return tuple(bound_to[start : start + 32] for start in range(0, len(bound_to), 32))


def _mailboxes(recipients: Iterable[str]) -> list[str]:
    from relay.mail import Recipient

    return [Recipient(each).mailbox for each in recipients]


@functools.cache
def _config(text: str) -> Config:
    """This relay.toml as the relay reads it."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "relay.toml").write_text(text)
        (directory / "policies").mkdir()
        return load_config(directory / "relay.toml")


@pytest.fixture(autouse=True)
def further_kems(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library for further KEMs, as the vectors have it."""
    monkeypatch.setattr(liboqs, "decapsulate", lambda _kem, secret, _ciphertext: secret)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stores(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WipedStore]:
    """A store that knows nothing, again for each case."""
    async with wiped_store(tmp_path_factory.mktemp("store")) as stores:
        yield stores


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_each_case_ends_as_its_file_says(case: Case, stores: WipedStore) -> None:
    aliases = "".join(f'"{name}" = {list(boxes)}\n' for name, boxes in case.aliases.items())
    config = _config(configuration(case.peers, case.groups) + f"[aliases]\n{aliases}")
    async with stores.empty() as store:
        bob = Bob(case, config, store)
        await bob.remember()
        # Else none: the store was empty.
        before = await bob.bindings() if case.bound else set()
        if case.expect == "success":
            _as_expected(case, await bob.opens())
        else:
            await _fails(bob)
        new = {
            Binding(name, level, tuple(each for each in fingerprints if (name, each) not in _pairs(before)))
            for name, level, fingerprints in await bob.bindings() - before
        }
        assert new == set(case.binds)


def _pairs(bindings: Iterable[Binding]) -> set[tuple[Name, bytes]]:
    return {(name, each) for name, _, fingerprints in bindings for each in fingerprints}


def _as_expected(case: Case, opened: Opened | None) -> None:
    assert opened is not None
    assert opened.arrived is not None
    assert hashlib.sha256(opened.original).hexdigest() == case.sha256
    assert (opened.protection, opened.peer, opened.envelope.sender) == (case.level, case.by, case.sealed_sender)
    sorted_out = (opened.due, opened.served, opened.strangers, opened.busy)
    expected = (*(tuple(_mailboxes(boxes)) for boxes in (case.due, case.served, case.aside)), ())
    assert sorted_out == expected
    assert opened.arrived.fingerprint == case.fingerprint


async def _fails(bob: Bob) -> None:
    case = bob.case
    try:
        opened = await bob.opens()
    except ERRORS[case.expect] as error:
        assert not isinstance(error, CannotOpen) or error.silent or case.expect in TOLD
        return
    # A message for somebody else is no error: it is passed on as it is. One that names nobody is put aside for all.
    if opened is None:
        assert case.expect == "not for us"
    else:
        assert (case.expect, opened.due, opened.served) == ("not named", (), ())


def test_there_are_at_least_300_cases_of_each_kind_and_level() -> None:
    assert len(CASES) >= 300
    assert {case.expect for case in CASES} == set(EXPECTED)
    for level in ("otp", "aes", "pqc", "rsa", "pqc+aes", "rsa+aes", "pqc+classic-mceliece-6688128"):
        assert {"success", "bad structure"} <= {case.expect for case in CASES if case.level == level}
    assert sum(case.name.startswith("attack-") for case in CASES) >= 60


def test_each_fingerprint_is_that_of_encrypted_content_info_and_mac() -> None:
    for case in CASES:
        if case.expect == "success" and case.form == "cms" and case.content[1] != 0x80:
            assert case.fingerprint == cms.decode_enveloped(case.content).fingerprint()


def test_the_script_makes_these_cases_and_those_without_randomness_octet_for_octet(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.vectors.make", str(tmp_path)], cwd=DIRECTORY.parents[1], check=False
    )
    assert done.returncode == 0
    made = {path.name: path.read_bytes() for path in tmp_path.glob("*.txt")}
    committed = {path.name: path.read_bytes() for path in DIRECTORY.glob("*.txt")}
    assert made.keys() == committed.keys()
    for name in made:
        heads = [_without_random_fingerprints(text[name]) for text in (made, committed)]
        assert heads[0] == heads[1]
        if name.startswith(("otp-", "aes-", "envelope-")) and name != "aes-mixed-recipients.txt":
            assert made[name] == committed[name]


def _without_random_fingerprints(file: bytes) -> list[bytes]:
    """The fields of a case; what a signature or an encapsulation is inside of has another fingerprint each time."""
    lines = file.partition(b"\n\n")[0].split(b"\n")
    named = (b"fingerprint:", b"binds:", b"bound:", b"seen:")
    return [re.sub(rb"\b[0-9a-f]{64}\b", b"", line) if line.startswith(named) else line for line in lines]
