"""Every test vector through the opener and a real store: what has to open opens, what must not does not.
Standard: relay/FORMAT.md; tests/vectors/case.py says what a file holds.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import pytest

from relay.config import load_config
from relay.errors import (
    BadSignature,
    BadStructure,
    BadTag,
    KeyDestroyed,
    KeyNotFound,
    NotForUs,
    RelayError,
    UnknownSigner,
)
from relay.keys import Key, KeyReference
from relay.keys.keyring import KeyRing
from relay.levels.aes import AES
from relay.levels.otp import OTP
from relay.levels.pqc import PQC
from relay.levels.rsa import RSA
from relay.opening import Opener
from relay.store import SiteSecret, Store, open_store
from tests.testlib.received import held
from tests.vectors.case import DIRECTORY, EXPECTED, Case, read_all
from tests.vectors.people import person

ERRORS: dict[str, tuple[type[RelayError], ...]] = {
    "no key": (KeyNotFound, NotForUs),
    "wrong key": (BadTag,),
    "bad tag": (BadTag,),
    "bad signature": (BadSignature, UnknownSigner),
    "bad structure": (BadStructure,),
    "key already used": (KeyDestroyed,),
}
CASES = read_all()
CONFIG = """\
[site]
name = "bob"
domains = ["bob.example"]
sae_id = "1"
hostname = "relay.bob.example"
[incoming]
listen = "127.0.0.1:0"
next_hop = "127.0.0.1:25"
[policies]
directory = "policies"
[store]
database = "relay.db"
secret = "site.secret"
[kmes.kme]
url = "https://127.0.0.1:1"
group = "alice-bob"
ca = "ca.pem"
certificate = "sae.pem"
key = "sae.key"
[peers.alice]
domains = ["alice.example"]
sae_id = "2"
kme_groups = ["alice-bob"]
"""


class StoredKeys:
    """A key ring whose KME knows nothing, so that only the store gives keys."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def fetch(self, references: Iterable[KeyReference], *, patient: bool = True) -> dict[KeyReference, Key]:
        wanted = {reference.key_ID: reference for reference in references}
        found = await held(self._store, "alice-bob", "2", wanted)
        return {wanted[key_ID]: Key(key_ID, octets) for key_ID, octets in found.items()}


async def _opener(directory: Path, store: Store) -> Opener:
    (directory / "relay.toml").write_text(CONFIG)
    (directory / "policies").mkdir()
    levels = {level.name: level for level in (OTP(), AES(), PQC(), RSA())}
    certificates = {"alice": person("alice").certificates}
    keys = cast(KeyRing, StoredKeys(store))
    config = load_config(directory / "relay.toml")
    return Opener(config, levels, keys, store.received, person("bob").identity, certificates)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_each_case_ends_as_its_file_says(case: Case, tmp_path: Path) -> None:
    secret = SiteSecret.load_or_create(tmp_path / "site.secret")
    async with await open_store(tmp_path / "relay.db", secret) as store:
        opener = await _opener(tmp_path, store)
        if case.destroyed:
            await store.received.put("alice-bob", "2", dict.fromkeys(case.destroyed, b"\1"))
            await store.received.mark_used("alice-bob", "2", case.destroyed, keep_for=-1)
            assert await store.received.destroy_expired() == len(case.destroyed)
        if case.keys:
            await store.received.put("alice-bob", "2", case.keys)
        if case.expect == "success":
            opened = await opener.open(case.message, case.sender)
            assert opened is not None
            assert hashlib.sha256(opened.original).hexdigest() == case.sha256
            assert (opened.protection, opened.peer) == (case.level, "alice")
            return
        try:
            opened = await opener.open(case.message, case.sender)
        except ERRORS[case.expect]:
            return
        # A message for somebody else is no error: it is passed on as it is.
        assert (opened, case.expect) == (None, "no key")


def test_there_are_at_least_60_cases_and_40_of_them_fail() -> None:
    assert len(CASES) >= 60
    assert sum(case.expect != "success" for case in CASES) >= 40
    assert {case.expect for case in CASES} == set(EXPECTED)
    for level in ("otp", "aes", "pqc", "rsa", "pqc+aes", "rsa+aes"):
        assert {"success", "bad structure"} <= {case.expect for case in CASES if case.level == level}


def test_the_script_makes_these_cases_and_those_without_randomness_octet_for_octet(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.vectors.make", str(tmp_path)], cwd=DIRECTORY.parents[1], check=False
    )
    assert done.returncode == 0
    made = {path.name: path.read_bytes() for path in tmp_path.glob("*.txt")}
    committed = {path.name: path.read_bytes() for path in DIRECTORY.glob("*.txt")}
    assert made.keys() == committed.keys()
    for name in made:
        head = [text[name].partition(b"\n\n")[0] for text in (made, committed)]
        assert head[0] == head[1]
        if name.startswith(("otp-", "aes-")) and name != "aes-mixed-recipients.txt":
            assert made[name] == committed[name]
