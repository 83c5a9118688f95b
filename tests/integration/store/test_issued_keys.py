"""Issued keys: none comes a second time, whatever becomes of relays and KMEs, the same over both back ends.
Standard: a key is remembered before it can be used; the store shows nothing of it.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from pathlib import Path

import pytest

from relay.errors import StoreUnavailable
from relay.store import kme_memory
from relay.store.secret import SiteSecret
from relay.store.store import Store, open_store
from tests.integration.store.conftest import Clock
from tests.integration.store.test_trouble import OPEN
from tests.testlib.databases import Backend, python

ONE, TWO = bytes(range(32)), bytes(range(32, 64))

REMEMBER_ON_A_FULL_DISK = (
    OPEN
    + """
async def main():
    async with await opened() as store:
        await store.issued_keys.ready()
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        try:
            for number in range(1_000_000):
                await store.issued_keys.ready()
        except StoreUnavailable as error:
            print("not ready")
        try:
            await store.issued_keys.remember("g", {"k": bytes(32)})
        except StoreUnavailable as error:
            print("not remembered")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await store.issued_keys.ready()
        print(sorted(await store.issued_keys.remember("g", {"k": bytes(32)})))
asyncio.run(main())
"""
)


async def test_a_key_comes_once(store: Store) -> None:
    assert await store.issued_keys.remember("g", {"one": ONE, "two": TWO}) == frozenset()
    assert await store.issued_keys.remember("g", {"two": TWO, "three": secrets.token_bytes(32)}) == {"two"}


async def test_a_key_is_known_again_after_a_restart_of_the_relay(backend: Backend, secret: SiteSecret) -> None:
    async with await open_store(backend.where, secret) as store:
        await store.issued_keys.remember("g", {"one": ONE})
    async with await open_store(backend.where, secret) as store:
        assert await store.issued_keys.remember("g", {"one": TWO}) == {"one"}


async def test_a_key_ID_is_the_same_in_upper_and_lower_case(store: Store) -> None:
    await store.issued_keys.remember("g", {"0a0b-Straße": ONE})
    assert await store.issued_keys.remember("g", {"0A0B-STRASSE": TWO}) == {"0A0B-STRASSE"}
    keys = {"Ab": secrets.token_bytes(32), "aB": secrets.token_bytes(32)}
    assert await store.issued_keys.remember("g", keys) == {"aB"}, "also within one reply"


async def test_the_same_octets_are_the_same_key_whatever_their_key_ID_and_group(store: Store) -> None:
    await store.issued_keys.remember("g", {"one": ONE})
    assert await store.issued_keys.remember("h", {"other": ONE}) == {"other"}
    assert len(await store.issued_keys.remember("g", {"a": TWO, "b": TWO})) == 1


async def test_the_same_key_ID_in_another_group_is_another_key(store: Store) -> None:
    await store.issued_keys.remember("g", {"one": ONE})
    assert await store.issued_keys.remember("h", {"one": TWO}) == frozenset()


async def test_octets_of_less_than_128_bits_may_be_equal_by_chance(store: Store) -> None:
    assert await store.issued_keys.remember("g", {"one": b"short", "two": b"short"}) == frozenset()
    assert await store.issued_keys.remember("g", {"one": b"other"}) == {"one"}


async def test_any_string_is_a_key_ID(store: Store) -> None:
    names = ["", "a\0b", "\ud800", "'; DROP TABLE issued_keys; --", "k" * 100_000]
    keys = {name: secrets.token_bytes(32) for name in names}
    assert await store.issued_keys.remember("\ud800\0", keys) == frozenset()
    assert await store.issued_keys.remember("\ud800\0", keys) == set(names)


async def test_more_keys_than_one_statement_takes(store: Store) -> None:
    keys = {f"k{number}": secrets.token_bytes(32) for number in range(1201)}
    assert await store.issued_keys.remember("g", keys) == frozenset()
    assert await store.issued_keys.remember("g", keys) == keys.keys()
    assert await store.issued_keys.remember("g", {}) == frozenset()


async def test_of_two_relays_that_get_the_same_key_one_has_it(backend: Backend, secret: SiteSecret) -> None:
    """Two KMEs of a group gave the same keys, in whatever order."""
    keys = {f"k{number}": secrets.token_bytes(32) for number in range(300)}
    backwards = dict(reversed(keys.items()))
    async with (
        await open_store(backend.where, secret, busy_timeout=30) as one,
        await open_store(backend.where, secret, busy_timeout=30) as two,
    ):
        answers = await asyncio.gather(one.issued_keys.remember("g", keys), two.issued_keys.remember("g", backwards))
    assert answers[0] | answers[1] == keys.keys()
    assert not answers[0] & answers[1]


async def test_the_store_shows_neither_key_nor_key_ID(backend: Backend, store: Store) -> None:
    await store.issued_keys.remember("g", {"a-telling-name": ONE})
    [row] = await backend.run("SELECT * FROM issued_keys")
    shown = b"".join(value if isinstance(value, bytes) else str(value).encode() for value in row)
    assert ONE not in shown
    assert b"telling" not in shown
    [(name, octets)] = await backend.run("SELECT name, octets FROM issued_keys")
    assert len(name) == len(octets) == 16


async def test_octets_are_told_apart_under_a_key_of_the_site(backend: Backend, secret: SiteSecret) -> None:
    """So that a guess cannot be tried without it; under an older secret they are known as long as that is at hand."""
    newest, older = secrets.token_bytes(32), secrets.token_bytes(32)
    async with await open_store(backend.where, SiteSecret(older)) as store:
        await store.issued_keys.remember("g", {"one": ONE})
    async with await open_store(backend.where, SiteSecret(newest, older)) as store:
        assert await store.issued_keys.remember("g", {"other": ONE}) == {"other"}
    async with await open_store(backend.where, SiteSecret(newest)) as store:
        assert await store.issued_keys.remember("g", {"one": TWO}) == {"one"}, "a key_ID needs no secret"
        assert await store.issued_keys.remember("g", {"another": ONE}) == frozenset()


async def test_while_somebody_else_writes_nothing_is_ready_nor_remembered(backend: Backend, secret: SiteSecret) -> None:
    both = "LOCK TABLE issued_keys, store_written IN EXCLUSIVE MODE"
    busy = replace(backend, lock=both) if backend.name == "postgresql" else backend
    async with await open_store(backend.where, secret, busy_timeout=0.05) as store:
        async with busy.locked():
            with pytest.raises(StoreUnavailable):
                await store.issued_keys.ready()
            with pytest.raises(StoreUnavailable):
                await store.issued_keys.remember("g", {"one": ONE})
        await store.issued_keys.ready()
        assert await store.issued_keys.remember("g", {"one": ONE}) == frozenset()


def test_on_a_full_disk_nothing_is_ready_and_it_passes(sqlite: Backend, secret_path: Path) -> None:
    with python(REMEMBER_ON_A_FULL_DISK, sqlite.where, str(secret_path)) as child:
        output, _ = child.communicate(timeout=120)
    assert output.splitlines() == ["not ready", "not remembered", "[]"]


async def test_after_400_days_a_key_is_forgotten(store: Store, clock: Clock) -> None:
    await store.issued_keys.remember("g", {"one": ONE})
    clock.now += kme_memory.KEEP_FOR_S - 1
    await store.issued_keys.remember("g", {"two": TWO})
    assert await store.issued_keys.expire() == 0
    clock.now += 1
    assert await store.issued_keys.expire() == 1
    assert await store.issued_keys.remember("g", {"one": ONE, "two": TWO}) == {"two"}


async def test_a_key_that_came_by_a_clock_that_was_behind_takes_no_older_one_with_it(
    store: Store, clock: Clock
) -> None:
    await store.issued_keys.remember("g", {"zero": bytes(32)})
    clock.now += kme_memory.KEEP_FOR_S
    await store.issued_keys.remember("g", {"one": ONE})
    clock.now = 0.0
    await store.issued_keys.remember("g", {"two": TWO})
    clock.now = 1_700_000_000.0 + kme_memory.KEEP_FOR_S
    assert await store.issued_keys.expire() == 1
    assert await store.issued_keys.remember("g", {"one": ONE}) == {"one"}


async def test_of_too_many_keys_the_oldest_are_forgotten(
    backend: Backend, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kme_memory, "MOST", 10)
    monkeypatch.setattr(kme_memory, "AT_ONCE", 7)
    keys = {f"k{number:02}": secrets.token_bytes(32) for number in range(30)}
    for key_ID, octets in keys.items():
        await store.issued_keys.remember("g", {key_ID: octets})
    assert await store.issued_keys.expire() == 20
    assert await store.issued_keys.expire() == 0
    assert await backend.run("SELECT count(*) FROM issued_keys") == [(10,)]
    assert await store.issued_keys.remember("g", dict(list(keys.items())[20:])) == set(list(keys)[20:])


async def test_a_table_that_was_taken_away_is_reported(backend: Backend, store: Store) -> None:
    await backend.run("DROP TABLE issued_keys")
    for work in (store.issued_keys.remember("g", {"one": ONE}), store.issued_keys.expire()):
        with pytest.raises(StoreUnavailable, match="issued_keys"):
            await work
