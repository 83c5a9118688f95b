"""Keys that are on the disk of one relay and have no row yet: they get it with what they open, in the same transaction.
Standard: relay/FORMAT.md; a key opens one ciphertext, whichever relay has it from wherever, and none is lost by a kill.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from relay.config import TCPAddress
from relay.errors import KeyDestroyed, KeyUsed, KMEBadReply, StoreUnavailable
from relay.formats.cms import KeyUse
from relay.key_receiver import Receiving, take_over_keys
from relay.mail import OpenedMail
from relay.store.database import Database
from relay.store.delivery_attempts import WaitingCopy
from relay.store.received_table import UNUSED_KEEP_FOR_S, Bound, KeyName, place
from relay.store.secret import SiteSecret
from relay.store.spool import Spool
from relay.store.store import Store, open_store
from tests.integration.store.conftest import Clock
from tests.integration.store.test_spool import delivered
from tests.testlib.databases import Backend
from tests.testlib.received import mark_used, state
from tests.testlib.sites import make_site

pytestmark = pytest.mark.usefixtures("impatient")

KEY, OTHER_KEY = bytes(range(32)), bytes(32)
BEN = "ben@bob.example"
NOWHERE = TCPAddress("127.0.0.1", 9)
ONE, OTHER = (hashlib.sha256(each).digest() for each in (b"one", b"other"))


def fresh(store: Store, key_ID: str, key: bytes = KEY) -> Any:
    """As the second process gives it, once it has written the reply down."""
    store.received.spooled("g", "2", [key_ID])
    return store.received.put("g", "2", {key_ID: key})


def bound(*key_IDs: str, fingerprint: bytes = ONE, most: int = 1) -> Bound:
    return Bound("g", "2", key_IDs, KeyUse("aes", fingerprint, most))


def opened(clock: Clock, number: int = 0) -> OpenedMail:
    return OpenedMail("2", number.to_bytes(16), ONE, clock.now + 86_400.0, (BEN,))


@pytest.fixture
async def relays(backend: Backend, secret: SiteSecret, clock: Clock) -> AsyncIterator[tuple[Store, Store]]:
    """Two relays of a site on one database."""
    async with AsyncExitStack() as stack:
        one, two = [
            await stack.enter_async_context(await open_store(backend.where, secret, clock=clock)) for _ in range(2)
        ]
        yield one, two


@pytest.fixture
def transactions(monkeypatch: pytest.MonkeyPatch) -> list[Database]:
    """One entry for each writing transaction from now on."""
    found: list[Database] = []
    writing = Database.writing

    async def counted(database: Database, work: Callable[[Connection], Any]) -> Any:
        found.append(database)
        return await writing(database, work)

    monkeypatch.setattr(Database, "writing", counted)
    return found


async def test_a_mail_waits_for_one_transaction_which_stores_its_key_and_binds_it_and_claims_whom_it_is_for(
    store: Store, clock: Clock, transactions: list[Database]
) -> None:
    await store.deliveries.admit([], opened(clock))  # the lease is begun with the first
    transactions.clear()
    await fresh(store, "k")
    assert await store.received.look("g", "2", ["k"], KeyUse("aes", ONE)) == ({"k": KEY}, frozenset())
    assert transactions == []
    begun = await store.deliveries.admit([bound("k")], opened(clock, 1))
    assert (begun.state(BEN), len(transactions)) == ("due", 1)


async def test_what_it_has_opened_is_known_after_a_kill(
    backend: Backend, secret: SiteSecret, clock: Clock, store: Store
) -> None:
    await fresh(store, "k")
    await store.deliveries.admit([bound("k")], opened(clock))
    async with await open_store(backend.where, secret, clock=clock) as another:
        assert (await another.received.look("g", "2", ["k"], KeyUse("aes", ONE)))[0] == {"k": KEY}
        with pytest.raises(KeyUsed):
            await another.received.look("g", "2", ["k"], KeyUse("aes", OTHER))
        with pytest.raises(KeyUsed):
            await another.deliveries.admit([bound("k", fingerprint=OTHER)])


async def test_two_messages_under_one_fresh_key_at_once_one_of_them_is_opened(store: Store, clock: Clock) -> None:
    await fresh(store, "k")
    found = await asyncio.gather(
        store.deliveries.admit([bound("k")], opened(clock, 1)),
        store.deliveries.admit([bound("k", fingerprint=OTHER)], opened(clock, 2)),
        return_exceptions=True,
    )
    assert [type(each).__name__ for each in found] == ["Begun", "KeyUsed"]


async def test_a_fresh_key_that_may_open_several_messages_opens_so_many(store: Store, clock: Clock) -> None:
    await fresh(store, "k")
    prints = [hashlib.sha256(bytes([number])).digest() for number in range(4)]
    found = await asyncio.gather(
        *(store.deliveries.admit([bound("k", fingerprint=each, most=3)]) for each in prints), return_exceptions=True
    )
    assert [type(each).__name__ for each in found] == ["Begun", "Begun", "Begun", "KeyUsed"]
    with pytest.raises(KeyUsed):
        await store.deliveries.admit([bound("k", fingerprint=prints[3], most=3)])


async def test_two_relays_that_have_the_same_fresh_key_open_one_message_with_it(
    relays: tuple[Store, Store], clock: Clock
) -> None:
    """A KME that gives a key twice; the relays take it at the same moment."""
    for number in range(10):
        for relay in relays:
            await fresh(relay, f"k{number}")
        found = await asyncio.gather(
            relays[0].deliveries.admit([bound(f"k{number}")], opened(clock, 2 * number)),
            relays[1].deliveries.admit([bound(f"k{number}", fingerprint=OTHER)], opened(clock, 2 * number + 1)),
            return_exceptions=True,
        )
        assert sorted(type(each).__name__ for each in found) == ["Begun", "KeyUsed"], found


async def test_a_fresh_key_that_came_before_with_other_octets_opens_nothing(
    relays: tuple[Store, Store], clock: Clock
) -> None:
    await fresh(relays[1], "k", OTHER_KEY)
    await relays[0].received.put("g", "2", {"k": KEY})
    with pytest.raises(KMEBadReply, match="came before with other bytes"):
        await relays[1].deliveries.admit([bound("k")], opened(clock))
    await relays[0].deliveries.admit([bound("k")], opened(clock))
    assert (await relays[1].received.look("g", "2", ["k"]))[0] == {"k": KEY}


async def test_a_fresh_key_that_was_destroyed_before_opens_nothing(relays: tuple[Store, Store], clock: Clock) -> None:
    await fresh(relays[1], "k")
    await relays[0].received.put("g", "2", {"k": KEY})
    await mark_used(relays[0], "g", "2", ["k"], keep_for=0)
    await relays[0].received.destroy_expired()
    with pytest.raises(KeyDestroyed):
        await relays[1].deliveries.admit([bound("k")], opened(clock))
    assert await state(relays[1], "g", "2", "k") == "destroyed"


async def test_a_key_that_another_worker_has_taken_over_is_held_by_the_store_alone_and_destroyed_there(
    relays: tuple[Store, Store], secret: SiteSecret, clock: Clock, tmp_path: Path
) -> None:
    """Of what both have on the disk, one takes over all that nobody writes to any more."""
    one, two = (each.received for each in relays)
    config = make_site(
        tmp_path / "site", "alice", state=tmp_path, kme_url="https://127.0.0.1:9", incoming=NOWHERE
    ).config
    receiving = Receiving(config, secret, one)
    try:
        await fresh(relays[0], "a")
        await fresh(relays[0], "here")
        await two.store("g", "2", {"a": KEY})
        await receiving.take_over()
        assert set(one.fresh([place(KeyName("g", "2", each)) for each in ("a", "here")])) == {
            place(KeyName("g", "2", "here"))
        }
        assert (await one.look("g", "2", ["a"]))[0] == {"a": KEY}
        clock.now += UNUSED_KEEP_FOR_S + 1
        await two.destroy_expired()
        assert await one.look("g", "2", ["a"]) == ({}, frozenset(["a"]))
    finally:
        await receiving.close()


async def test_where_the_store_fails_the_key_stays_at_hand_and_opens_the_mail_when_it_is_tried_again(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fresh(store, "k")

    def full(*_: object) -> None:
        raise StoreUnavailable("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(store.deliveries._attempts, "_find", full)
        with pytest.raises(StoreUnavailable):
            await store.deliveries.admit([bound("k")], opened(clock))
    assert (await store.received.look("g", "2", ["k"]))[0] == {"k": KEY}
    assert (await store.deliveries.admit([bound("k")], opened(clock))).state(BEN) == "due"


async def test_what_a_full_disk_kept_out_of_the_spool_is_in_the_store_before_it_is_used(
    store: Store, backend: Backend
) -> None:
    """Then nobody says that the reply is on the disk."""
    await store.received.put("g", "2", {"k": KEY})
    assert len(await backend.run("SELECT place FROM received_keys")) == 1


async def test_a_key_that_opened_nothing_is_taken_over_and_one_that_did_keeps_what_it_has_opened(
    tmp_path: Path, store: Store, secret: SiteSecret
) -> None:
    """All of it is on the disk; what has its row already is left out, or stays as it is there."""
    spool = Spool(tmp_path, secret)
    spool.append(delivered("one", "two").encoded())
    octets = delivered("one", "two").keys()
    store.received.spooled("backbone", "2", octets)
    await store.received.put("backbone", "2", octets)
    use = KeyUse("aes", ONE)
    await store.deliveries.admit([Bound("backbone", "2", ("one",), use)])
    have_rows = store.received.taken_over_from_now_on()
    assert have_rows == {KeyName("backbone", "2", "one")}
    spool.hand_over()
    assert await take_over_keys(tmp_path, secret, store.received, have_rows) == 1
    assert store.received.taken_over_from_now_on() == {KeyName("backbone", "2", "two")}
    spool.append(delivered("one", "two").encoded())
    spool.hand_over()
    assert await take_over_keys(tmp_path, secret, store.received) == 2
    spool.close()
    assert (await store.received.look("backbone", "2", ["one", "two"], use))[0] == octets
    with pytest.raises(KeyUsed):
        await store.deliveries.admit([Bound("backbone", "2", ("one",), KeyUse("aes", OTHER))])


async def test_sealed_copies_for_which_there_is_no_room_hold_up_nothing_else(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few octets have room on a disk where a copy of many has none."""
    mail, copy = bytes(32), WaitingCopy(("a@x",), {}, b"sealed")
    begun = await store.deliveries.begin("outgoing", mail, ["a@x"], intent=True)
    settle = store.deliveries._attempts.settle

    def no_room(outcomes: Any, *how: Any) -> Any:
        if any(each.copies for each in outcomes):
            raise StoreUnavailable("disk full")
        return settle(outcomes, *how)

    with monkeypatch.context() as patched:
        patched.setattr(store.deliveries._attempts, "settle", no_room)
        settling, admitting = await asyncio.gather(
            store.deliveries.settle(mail, begun, ["a@x"], copies=[copy]),
            store.deliveries.admit([], opened(clock)),
            return_exceptions=True,
        )
        assert isinstance(settling, StoreUnavailable)
        assert not isinstance(admitting, BaseException)
        assert admitting.state(BEN) == "due"
    await store.deliveries.go_on()
    [waiting] = (await store.deliveries.begin("outgoing", mail, ["a@x"])).copies
    assert waiting.message == b"sealed"


async def test_what_ends_and_what_begins_at_once_share_a_transaction_of_sqlite(
    sqlite: Backend, secret: SiteSecret, clock: Clock, transactions: list[Database]
) -> None:
    async with await open_store(sqlite.where, secret, clock=clock) as store:
        mails = [opened(clock, number) for number in range(20)]
        await asyncio.gather(*(store.deliveries.admit([], mail) for mail in mails[:10]))
        transactions.clear()
        settling = (store.deliveries.settle_opened(mail, [BEN]) for mail in mails[:10])
        await asyncio.gather(*settling, *(store.deliveries.admit([], mail) for mail in mails[10:]))
        assert len(transactions) <= 2
        for mail, expected in zip(mails, ["served"] * 10 + ["busy"] * 10, strict=True):
            assert (await store.deliveries.admit([], mail)).state(BEN) == expected
