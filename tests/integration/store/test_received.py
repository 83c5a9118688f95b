"""Received keys as their users see them, the same over both back ends.
Standard: ETSI GS QKD 014 gives a key once: none may be lost, mistaken for another, or kept for ever.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from sqlalchemy import Connection, Engine, event

from relay.errors import KMEBadReply, TryLater
from relay.formats.cms import KeyUse
from relay.mail import OpenedMail
from relay.store.database import Database
from relay.store.received import OTP_KEEP_FOR_S, PLACES_AT_ONCE, TOMBSTONE_KEEP_FOR_S, USED_KEEP_FOR_S, Counts
from relay.store.received_table import UNUSED_KEEP_FOR_S, Bound, KeyName, KeysUsed, as_column, from_column
from relay.store.secret import SiteSecret
from relay.store.store import Store, open_store
from tests.integration.store.conftest import Clock
from tests.testlib.databases import Backend
from tests.testlib.received import held, mark_used, state

KEY = bytes(range(32))
OTHER = bytes(32)
HOSTILE = [
    "k" * 256,
    "\U0001f600" * 256,
    "'; DROP TABLE received_keys; --",
    '"%s" {0} :x $1 ? \\x00',
    "a\0b",
    "\0",
    "\ud800 is half a pair",
    "Schlüssel\r\n\u2028",
    "e\u0301",
    "\u00e9",
    "",
    " ",
    "x" * 100_000,
]


async def test_a_key_comes_back_as_it_was_put(store: Store) -> None:
    await store.received.put("g", "alice", {"k": KEY})
    assert await held(store, "g", "alice", ["k"]) == {"k": KEY}


async def test_keys_of_any_length_come_back(store: Store) -> None:
    keys = {"empty": b"", "one": b"\0", "long": bytes(range(256)) * 4096}
    await store.received.put("g", "alice", keys)
    assert await held(store, "g", "alice", keys) == keys


async def test_a_key_that_is_not_there_is_missing_from_the_result(store: Store) -> None:
    await store.received.put("g", "alice", {"k": KEY})
    assert await held(store, "g", "alice", ["k", "other", "k"]) == {"k": KEY}
    assert await state(store, "g", "alice", "other") == "unknown"


async def test_nothing_asked_nothing_done(store: Store) -> None:
    await store.received.put("g", "alice", {})
    assert await held(store, "g", "alice", []) == {}
    await mark_used(store, "g", "alice", [], 1)
    assert await store.received.destroy_expired() == 0
    assert await store.received.counts() == {}


async def test_the_same_key_ID_in_another_group_or_from_another_master_is_another_key(store: Store) -> None:
    places = [("g", "alice"), ("h", "alice"), ("g", "carol"), ("ga", "lice")]
    for number, (group, master_sae) in enumerate(places):
        await store.received.put(group, master_sae, {"k": bytes([number])})
    for number, (group, master_sae) in enumerate(places):
        assert await held(store, group, master_sae, ["k"]) == {"k": bytes([number])}


async def test_putting_the_same_key_again_is_fine(store: Store) -> None:
    await store.received.put("g", "alice", {"k": KEY})
    await store.received.put("g", "alice", {"k": KEY, "l": OTHER})
    assert await held(store, "g", "alice", ["k", "l"]) == {"k": KEY, "l": OTHER}


async def test_other_octets_for_a_key_ID_are_refused_but_the_other_keys_are_kept(store: Store) -> None:
    """They have left the KME for good, so they must not be lost with the bad one."""
    await store.received.put("g", "alice", {"k": KEY})
    with pytest.raises(KMEBadReply, match="'k' came before with other bytes") as caught:
        await store.received.put("g", "alice", {"j": KEY, "k": OTHER, "l": OTHER})
    assert isinstance(caught.value, TryLater)
    assert await held(store, "g", "alice", ["j", "k", "l"]) == {"j": KEY, "k": KEY, "l": OTHER}


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name[:20]))
async def test_any_string_is_a_name(store: Store, clock: Clock, name: str) -> None:
    await store.received.put(name, name, {name: KEY, "k": OTHER})
    assert await held(store, name, name, [name]) == {name: KEY}
    await mark_used(store, name, name, [name], 1)
    assert await store.received.counts() == {(name, name): Counts(held=2, used=1, destroyed=0)}
    clock.now += 1
    await store.received.destroy_expired()
    assert await state(store, name, name, name) == "destroyed"


async def test_no_hostile_name_is_taken_for_another(store: Store) -> None:
    keys = {name: bytes([number]) for number, name in enumerate(HOSTILE)}
    await store.received.put("g", "alice", keys)
    assert await held(store, "g", "alice", HOSTILE) == keys


@given(st.text(st.characters(categories=None)), st.text(st.characters(categories=None)))
def test_a_name_is_written_in_ascii_and_read_back(one: str, other: str) -> None:
    assert from_column(as_column(one)) == one
    assert as_column(one).isascii()
    assert "\0" not in as_column(one)
    assert (KeyName("", one, other).place("t") == KeyName(one, "", other).place("t")) is (one == "")


def test_a_key_keeps_its_place_for_ever() -> None:
    """A fixed value: if this fails, an upgrade would find none of the stored keys."""
    place = KeyName("g", "alice", "k").place("received_keys")
    assert place == hashlib.sha256(b"\0\0\0\x0dreceived_keys\0\0\0\x01g\0\0\0\x05alice\0\0\0\x01k").digest()


async def test_more_keys_than_one_statement_takes(store: Store, clock: Clock) -> None:
    keys = {f"k{number}": number.to_bytes(4, "big") for number in range(1201)}
    await store.received.put("g", "alice", keys)
    assert await held(store, "g", "alice", keys) == keys
    await mark_used(store, "g", "alice", keys, 1)
    clock.now += 1
    assert await store.received.destroy_expired() == 1201


async def test_a_key_that_was_never_used_is_kept_for_five_days(store: Store, clock: Clock) -> None:
    await store.received.put("g", "alice", {"k": KEY})
    clock.now += UNUSED_KEEP_FOR_S - 1
    assert await store.received.destroy_expired() == 0
    clock.now += 1
    assert await store.received.destroy_expired() == 1
    assert await held(store, "g", "alice", ["k"]) == {}
    assert await state(store, "g", "alice", "k") == "destroyed"


@pytest.mark.parametrize("keep_for", [OTP_KEEP_FOR_S, USED_KEEP_FOR_S, 2 * UNUSED_KEEP_FOR_S])
async def test_the_first_use_says_how_long_a_key_is_kept(store: Store, clock: Clock, keep_for: float) -> None:
    await store.received.put("g", "alice", {"k": KEY})
    clock.now += 100
    await mark_used(store, "g", "alice", ["k"], keep_for)
    clock.now += keep_for - 1
    assert await store.received.destroy_expired() == 0
    assert await store.received.destroy_expired(clock.now + 1) == 1


async def test_later_uses_do_not_prolong_it(store: Store, clock: Clock) -> None:
    await store.received.put("g", "alice", {"k": KEY})
    await mark_used(store, "g", "alice", ["k"], 900)
    clock.now += 899
    await mark_used(store, "g", "alice", ["k", "k"], 86_400)
    await store.received.put("g", "alice", {"k": KEY})
    clock.now += 1
    assert await store.received.destroy_expired() == 1


async def test_uses_that_are_noted_at_once_share_their_transactions(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for them any more, so that they must not become more than the disk can do."""
    keys = [f"k{number}" for number in range(100)]
    await store.received.put("g", "alice", dict.fromkeys(keys, KEY))
    mails = [OpenedMail("alice", key.encode(), bytes(32), 1e12, ("ben@bob.example",)) for key in keys]
    await asyncio.gather(*(store.deliveries.admit([], mail) for mail in mails))
    transactions = 0
    writing = Database.writing

    async def counted(database: Database, work: Callable[[Connection], Any]) -> Any:
        nonlocal transactions
        transactions += 1
        return await writing(database, work)

    monkeypatch.setattr(Database, "writing", counted)
    settled = (
        store.deliveries.settle_opened(
            mail, mail.mailboxes, complete=set(mail.mailboxes).issubset, used=[used(key, "k0")]
        )
        for mail, key in zip(mails, keys, strict=True)
    )
    await asyncio.gather(*settled)
    assert transactions <= 2
    assert await store.received.counts() == {("g", "alice"): Counts(held=100, used=100, destroyed=0)}


def used(*key_IDs: str) -> KeysUsed:
    return KeysUsed("g", "alice", key_IDs, 900)


async def test_marking_an_unknown_or_destroyed_key_changes_nothing(store: Store, clock: Clock) -> None:
    await store.received.put("g", "alice", {"k": KEY})
    clock.now += UNUSED_KEEP_FOR_S
    await store.received.destroy_expired()
    await mark_used(store, "g", "alice", ["k", "unknown"], 900)
    assert await store.received.counts() == {("g", "alice"): Counts(held=0, used=0, destroyed=1)}


async def test_a_destroyed_key_is_not_taken_back(store: Store, clock: Clock) -> None:
    await store.received.put("g", "alice", {"k": KEY})
    clock.now += UNUSED_KEEP_FOR_S
    await store.received.destroy_expired()
    with pytest.raises(KMEBadReply, match="destroyed"):
        await store.received.put("g", "alice", {"k": KEY, "l": OTHER})
    assert await held(store, "g", "alice", ["k", "l"]) == {"l": OTHER}


async def test_a_destroyed_key_is_remembered_for_thirty_days(store: Store, clock: Clock) -> None:
    await store.received.put("g", "alice", {"k": KEY})
    clock.now += UNUSED_KEEP_FOR_S
    await store.received.destroy_expired()
    clock.now += TOMBSTONE_KEEP_FOR_S - 1
    await store.received.destroy_expired()
    assert await state(store, "g", "alice", "k") == "destroyed"
    clock.now += 1
    await store.received.destroy_expired()
    assert await state(store, "g", "alice", "k") == "unknown"


async def test_counts_are_by_group_and_master(store: Store, clock: Clock) -> None:
    await store.received.put("g", "alice", {"old": KEY})
    clock.now += UNUSED_KEEP_FOR_S
    await store.received.destroy_expired()
    await store.received.put("g", "alice", {"a": KEY, "b": KEY})
    await store.received.put("h", "carol", {"a": KEY})
    await mark_used(store, "g", "alice", ["a"], 900)
    assert await store.received.counts() == {
        ("g", "alice"): Counts(held=2, used=1, destroyed=1),
        ("h", "carol"): Counts(held=1, used=0, destroyed=0),
    }


async def test_keys_are_there_when_the_store_is_opened_again(backend: Backend, secret: SiteSecret) -> None:
    for _ in range(2):
        async with await open_store(backend.where, secret) as store:
            await store.received.put("g", "alice", {"k": KEY})
            assert await held(store, "g", "alice", ["k"]) == {"k": KEY}


async def test_a_new_key_is_known_not_to_be_there_and_no_other_one(backend: Backend, secret: SiteSecret) -> None:
    old = [f"old-{number}" for number in range(PLACES_AT_ONCE + 1)]
    async with await open_store(backend.where, secret) as store:
        await store.received.put("g", "alice", dict.fromkeys(old, KEY))
    async with await open_store(backend.where, secret) as store:
        received = store.received
        assert not received.has_none_of("g", "alice", ["new"])
        await received.learn_places()
        alone = store.deliveries.alone
        assert received.has_none_of("g", "alice", ["new"]) == received.has_none_of("h", "alice", old[:1]) == alone
        assert not any(received.has_none_of("g", "alice", ["new", key_ID]) for key_ID in old)
        await received.put("g", "alice", {"put": KEY})
        received.spooled("g", "alice", ["spooled"])
        await received.put("g", "alice", {"spooled": KEY})
        assert not any(received.has_none_of("g", "alice", [key_ID]) for key_ID in ("put", "spooled"))


async def test_relays_that_put_the_same_keys_at_once_agree(backend: Backend, secret: SiteSecret) -> None:
    keys = {f"k{number}": bytes([number]) * 32 for number in range(50)}
    async with await open_store(backend.where, secret) as one, await open_store(backend.where, secret) as two:
        await asyncio.gather(
            *(one.received.put("g", "alice", keys) for _ in range(5)),
            *(two.received.put("g", "alice", dict(reversed(keys.items()))) for _ in range(5)),
        )
        assert await held(one, "g", "alice", keys) == await held(two, "g", "alice", keys) == keys


async def test_of_two_relays_with_other_octets_one_is_refused(backend: Backend, secret: SiteSecret) -> None:
    async with await open_store(backend.where, secret) as one, await open_store(backend.where, secret) as two:
        for number in range(10):
            both = await asyncio.gather(
                one.received.put("g", "alice", {f"k{number}": KEY}),
                two.received.put("g", "alice", {f"k{number}": OTHER}),
                return_exceptions=True,
            )
            assert sorted(type(outcome).__name__ for outcome in both) == ["KMEBadReply", "NoneType"]
            kept = KEY if both[0] is None else OTHER
            assert await held(two, "g", "alice", [f"k{number}"]) == {f"k{number}": kept}


async def test_relays_that_note_the_same_uses_at_once_do_not_wait_for_each_other_for_ever(
    backend: Backend, secret: SiteSecret
) -> None:
    keys = [f"k{number}" for number in range(100)]
    async with await open_store(backend.where, secret) as one, await open_store(backend.where, secret) as two:
        await one.received.put("g", "alice", dict.fromkeys(keys, KEY))
        await asyncio.gather(
            *(mark_used(one, "g", "alice", keys, 900) for _ in range(4)),
            *(mark_used(two, "g", "alice", keys[::-1], 900) for _ in range(4)),
        )
        assert await one.received.counts() == {("g", "alice"): Counts(held=100, used=100, destroyed=0)}


async def test_a_key_is_destroyed_by_one_relay_only(backend: Backend, secret: SiteSecret, clock: Clock) -> None:
    keys = {f"k{number}": KEY for number in range(1100)}
    async with (
        await open_store(backend.where, secret, clock=clock) as one,
        await open_store(backend.where, secret, clock=clock) as two,
    ):
        await one.received.put("g", "alice", keys)
        clock.now += UNUSED_KEEP_FOR_S
        destroyed = await asyncio.gather(*(store.received.destroy_expired() for store in (one, two, one)))
        assert sum(destroyed) == 1100
        assert await two.received.counts() == {("g", "alice"): Counts(held=0, used=0, destroyed=1100)}


@pytest.mark.parametrize("steps", range(12))
async def test_a_put_that_is_given_up_at_any_point_leaves_the_store_working(store: Store, steps: int) -> None:
    put = asyncio.create_task(store.received.put("g", "alice", {"given up": KEY}))
    for _ in range(steps):
        await asyncio.sleep(0)
    put.cancel()
    with suppress(asyncio.CancelledError):
        await put
    await store.received.put("g", "alice", {"k": OTHER})
    assert (await held(store, "g", "alice", ["k"])) == {"k": OTHER}


async def test_what_is_done_for_a_mail_takes_no_longer_the_more_keys_there_are(
    tmp_path: Path, secret: SiteSecret
) -> None:
    """Of a long list of keys SQLite would look through all that are held, rather than for those that are named."""
    async with await open_store(tmp_path / "relay.db", secret) as store:
        await _looks_for_named_keys_alone(store)


async def _looks_for_named_keys_alone(store: Store) -> None:
    database, names = store.received._database, [f"k{number}" for number in range(50)]
    await store.received.put("g", "alice", dict.fromkeys(names, KEY))
    said: list[tuple[str, Any]] = []

    def listen(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        said.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", listen)
    try:
        bound = Bound("g", "alice", tuple(names), KeyUse("aes", bytes(32)))
        await store.deliveries.admit([bound])
        await store.deliveries.admit([bound])
        await mark_used(store, "g", "alice", names, 60)
        await held(store, "g", "alice", names)
    finally:
        event.remove(Engine, "before_cursor_execute", listen)
    about_keys = [(statement, values) for statement, values in said if "received_keys" in statement and values]

    def plans(connection: Connection) -> list[str]:
        found = []
        for statement, values in about_keys:
            one = values[0] if isinstance(values, list) else values
            found += [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", one)]
        return found

    ways = [way for way in await database.writing(plans) if "received_keys" in way]
    assert len(ways) >= 3
    assert {way for way in ways if "(place=?)" not in way} == set()
