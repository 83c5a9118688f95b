"""What was opened, as its users see it, the same over both back ends: one ciphertext a key, one mail a recipient.
Standard: relay/FORMAT.md; binding and claim are one step, also for two relays that take it at the same moment.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relay.counting import metrics
from relay.errors import KeyDestroyed, KeyUsed, Replayed, StoreUnavailable
from relay.formats.cms import KeyUse
from relay.mail import OpenedMail
from relay.store.delivery_attempts import RecipientState
from relay.store.received_table import Bound
from relay.store.secret import SiteSecret
from relay.store.store import Store, open_store
from tests.integration.store.conftest import Clock
from tests.testlib.counted import counted
from tests.testlib.databases import Backend, python
from tests.testlib.received import mark_used

pytestmark = pytest.mark.usefixtures("impatient")

KEY = bytes(range(32))
BEN, BEA = "ben@bob.example", "bea@bob.example"
ONE, OTHER = (hashlib.sha256(each).digest() for each in (b"one", b"other"))
A_WEEK = 7 * 86_400.0


def opened(*mailboxes: str, fingerprint: bytes = ONE, id: bytes = b"i" * 16, clock: Clock) -> OpenedMail:  # noqa: A002
    return OpenedMail("2", id, fingerprint, clock.now + A_WEEK, mailboxes or (BEN,))


def bound(*key_IDs: str, fingerprint: bytes = ONE, level: str = "otp", most: int = 1, group: str = "g") -> Bound:
    return Bound(group, "2", key_IDs, KeyUse(level, fingerprint, most))


async def admit(store: Store, keys: Sequence[Bound], mail: OpenedMail) -> dict[str, RecipientState]:
    """What becomes of each mailbox."""
    begun = await store.deliveries.admit(keys, mail)
    return {mailbox: begun.state(mailbox) for mailbox in mail.mailboxes}


@pytest.fixture
async def relays(backend: Backend, secret: SiteSecret, clock: Clock) -> AsyncIterator[tuple[Store, Store]]:
    """Two relays of a site on one database."""
    async with AsyncExitStack() as stack:
        one, two = [
            await stack.enter_async_context(await open_store(backend.where, secret, clock=clock)) for _ in range(2)
        ]
        yield one, two


# --- keys ----------------------------------------------------------------------------------------------


async def test_a_key_opens_one_ciphertext_again_and_again_and_no_other(store: Store) -> None:
    await store.received.put("g", "2", {"k": KEY, "l": KEY})
    for _ in range(2):
        await store.deliveries.admit([bound("k", "l")])
    with pytest.raises(KeyUsed, match="key l: it has opened another message"):
        await store.deliveries.admit([bound("l", fingerprint=OTHER)])
    with pytest.raises(KeyUsed, match="key k: it has opened something at level otp"):
        await store.deliveries.admit([bound("k", level="aes")])


async def test_what_a_key_has_opened_is_looked_at_before_any_cryptography(store: Store) -> None:
    await store.received.put("g", "2", {"k": KEY})
    await store.deliveries.admit([bound("k")])
    octets, _ = await store.received.look("g", "2", ["k"], KeyUse("otp", ONE))
    assert octets == {"k": KEY}
    for use in (KeyUse("otp", OTHER), KeyUse("aes", ONE)):
        with pytest.raises(KeyUsed):
            await store.received.look("g", "2", ["k"], use)


async def test_of_the_keys_of_a_refused_message_none_is_bound(store: Store) -> None:
    await store.received.put("g", "2", {"k": KEY, "l": KEY})
    await store.deliveries.admit([bound("k")])
    with pytest.raises(KeyUsed):
        await store.deliveries.admit([bound("l", "k", fingerprint=OTHER)])
    await store.deliveries.admit([bound("l")])


async def test_at_level_aes_a_key_opens_as_many_messages_as_the_peer_may_wrap(store: Store) -> None:
    await store.received.put("g", "2", {"k": KEY})
    fingerprints = [hashlib.sha256(bytes([number])).digest() for number in range(4)]
    for fingerprint in (*fingerprints[:3], *fingerprints[:3]):
        await store.deliveries.admit([bound("k", fingerprint=fingerprint, level="aes", most=3)])
    with pytest.raises(KeyUsed, match="it has opened another message"):
        await store.deliveries.admit([bound("k", fingerprint=fingerprints[3], level="aes", most=3)])


async def test_keys_of_the_same_name_in_another_group_are_other_keys(store: Store) -> None:
    for group in ("g", "h"):
        await store.received.put(group, "2", {"k": KEY})
    await store.deliveries.admit([bound("k")])
    await store.deliveries.admit([bound("k", fingerprint=OTHER, group="h")])


async def test_a_key_in_other_letters_is_the_same_key(store: Store) -> None:
    await store.received.put("g", "2", {"key-A": KEY})
    await store.deliveries.admit([bound("KEY-a")])
    with pytest.raises(KeyUsed):
        await store.deliveries.admit([bound("key-A", fingerprint=OTHER)])


async def test_a_key_that_was_destroyed_meanwhile_opens_nothing(store: Store, clock: Clock) -> None:
    await store.received.put("g", "2", {"k": KEY})
    await mark_used(store, "g", "2", ["k"], 1)
    clock.now += 2
    await store.received.destroy_expired()
    with pytest.raises(KeyDestroyed, match="key k was destroyed while the message was opened"):
        await store.deliveries.admit([bound("k")], opened(clock=clock))
    await store.deliveries.admit([], opened(clock=clock))  # nobody was claimed for it


async def test_two_relays_that_open_two_messages_under_one_key_at_once_open_one_of_them(
    relays: tuple[Store, Store], clock: Clock
) -> None:
    for number in range(10):
        keys = {f"{number}-{each}": KEY for each in range(20)}
        await relays[0].received.put("g", "2", keys)
        mails = [
            ([bound(*order, fingerprint=mark)], opened(id=os.urandom(16), fingerprint=mark, clock=clock))
            for order, mark in ((list(keys), ONE), (list(keys)[::-1], OTHER))
        ]
        found = await asyncio.gather(
            *(admit(relay, *mail) for relay, mail in zip(relays, mails, strict=True)), return_exceptions=True
        )
        assert sorted(type(each).__name__ for each in found) == ["KeyUsed", "dict"], found


# --- recipients ----------------------------------------------------------------------------------------


async def test_a_recipient_is_due_then_busy_then_served(relays: tuple[Store, Store], clock: Clock) -> None:
    one, two = relays
    mail = opened(BEN, BEA, clock=clock)
    assert await admit(one, [], mail) == {BEN: "due", BEA: "due"}
    assert await admit(two, [], mail) == {BEN: "busy", BEA: "busy"}
    assert await one.deliveries.settle_opened(mail, [BEN], [BEA]) == {BEN}
    assert await admit(two, [], mail) == {BEN: "served", BEA: "due"}
    assert await two.deliveries.settle_opened(mail, [BEA]) == {BEN, BEA}
    assert await admit(one, [], mail) == {BEN: "served", BEA: "served"}


async def test_who_has_the_mail_has_it_whatever_is_said_later(store: Store, clock: Clock) -> None:
    mail = opened(clock=clock)
    await store.deliveries.admit([], mail)
    await store.deliveries.settle_opened(mail, [BEN])
    assert await store.deliveries.settle_opened(mail, [], [BEN]) == {BEN}
    assert await admit(store, [], mail) == {BEN: "served"}


async def test_a_claim_ends_by_itself_so_that_a_killed_relay_keeps_nobodys_mail(
    relays: tuple[Store, Store], backend: Backend, clock: Clock
) -> None:
    mail = opened(clock=clock)
    await relays[0].deliveries.admit([], mail)
    assert await admit(relays[1], [], mail) == {BEN: "busy"}
    await backend.end_lease(relays[0].claims._relay)
    assert await admit(relays[1], [], mail) == {BEN: "due"}
    assert await admit(relays[0], [], mail) == {BEN: "busy"}, "it is the other's now"
    await relays[0].deliveries.settle_opened(mail, [], [BEN])
    assert await admit(relays[0], [], mail) == {BEN: "busy"}, "and stays so, whatever became of the first try"


async def test_a_process_that_has_ended_is_dead_though_nobody_has_waited_for_its_end(
    relays: tuple[Store, Store], backend: Backend, clock: Clock
) -> None:
    await relays[0].deliveries.admit([], opened(clock=clock))
    ended = os.posix_spawn(sys.executable, [sys.executable, "-c", "pass"], os.environ)
    os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
    await backend.run("UPDATE relays SET relay = ? WHERE relay = ?", f"{ended}-x", relays[0].claims._relay)
    assert await relays[1].claims.dead_processes() == ({f"{ended}-x"} if backend.name == "sqlite" else set())
    os.waitpid(ended, 0)


async def test_who_has_a_mail_is_known_though_it_could_not_be_written_and_is_written_later(
    backend: Backend, secret: SiteSecret, clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full() -> None:
        raise StoreUnavailable("disk full")

    assert isinstance(clock, Clock)
    mail = opened(clock=clock)
    async with await open_store(backend.where, secret, clock=clock) as store:
        await store.deliveries.admit([], mail)
        with monkeypatch.context() as patched:
            patched.setattr(store.deliveries, "_write_now", full)
            with pytest.raises(StoreUnavailable):
                await store.deliveries.settle_opened(mail, [BEN])
        assert await admit(store, [], mail) == {BEN: "served"}
    async with await open_store(backend.where, secret, clock=clock) as restarted:
        await restarted.claims.end_claims()
        assert await admit(restarted, [], mail) == {BEN: "served"}


async def test_what_is_said_while_older_words_are_written_is_not_lost(
    backend: Backend, secret: SiteSecret, clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """First it could not be written who has the mail; while that is tried again another one gets it."""

    async def full() -> None:
        raise StoreUnavailable("disk full")

    assert isinstance(clock, Clock)
    mail = opened(BEN, BEA, clock=clock)
    async with await open_store(backend.where, secret, clock=clock) as store:
        await store.deliveries.admit([], mail)
        with monkeypatch.context() as patched:
            patched.setattr(store.deliveries, "_write_now", full)
            with pytest.raises(StoreUnavailable):
                await store.deliveries.settle_opened(mail, [BEN])
        later: list[asyncio.Task[set[str]]] = []

        async def meanwhile(*arguments: Any) -> Any:
            if not later:
                later.append(asyncio.create_task(store.deliveries.settle_opened(mail, [BEA])))
                while len(store.deliveries._unwritten) < 2:
                    await asyncio.sleep(0)
            return await change(*arguments)

        change = store.claims.change
        monkeypatch.setattr(store.claims, "change", meanwhile)
        await store.deliveries.go_on()
        assert await later[0] == {BEN, BEA}
    async with await open_store(backend.where, secret, clock=clock) as again:
        assert await admit(again, [], mail) == {BEN: "served", BEA: "served"}


async def test_a_relay_that_starts_ends_the_claims_of_those_who_are_dead_and_of_nobody_else(
    store: Store, backend: Backend, clock: Clock, secret_path: Path
) -> None:
    """With PostgreSQL they may be on another host: there a lease ends by itself only."""
    await store.received.put("g", "2", {"k": KEY})
    mail, has_it, mine = (opened(id=each * 16, fingerprint=bytes(32), clock=clock) for each in (b"i", b"j", b"m"))
    await store.deliveries.admit([], mine)
    await store.deliveries.admit([], has_it)
    await store.deliveries.settle_opened(has_it, [BEN])
    with python(_KILLED, backend.where, str(secret_path), "claimed") as process:
        assert await asyncio.to_thread(process.wait, 60) == -9
    for ended in ("alone", "by itself"):
        await store.claims.end_claims()
        alone = backend.name == "sqlite" or ended == "by itself"
        assert await admit(store, [], mail) == {BEN: "due" if alone else "busy"}
        await store.deliveries.settle_opened(mail, [], [BEN])
        await backend.end_leases(but=store.claims._relay)
    assert counted(store.claims.board, metrics.INTERRUPTED, "opened") == 1
    assert await admit(store, [], mine) == {BEN: "busy"}
    assert await admit(store, [], has_it) == {BEN: "served"}


async def test_two_relays_at_once_claim_each_recipient_once(relays: tuple[Store, Store], clock: Clock) -> None:
    people = [f"{number}@bob.example" for number in range(30)]
    for _ in range(10):
        mail = opened(*people, id=os.urandom(16), clock=clock)
        both = await asyncio.gather(
            admit(relays[0], [], mail),
            admit(relays[1], [], replace(mail, mailboxes=tuple(reversed(people)))),
        )
        for each in people:
            assert sorted(states[each] for states in both) == ["busy", "due"]


async def test_relays_that_settle_and_claim_the_same_mail_do_not_wait_for_each_other_for_ever(
    relays: tuple[Store, Store], clock: Clock
) -> None:
    people = [f"{number}@bob.example" for number in range(40)]
    mail = opened(*people, clock=clock)
    for _ in range(20):
        await asyncio.gather(
            relays[0].deliveries.settle_opened(mail, [], people),
            relays[1].deliveries.settle_opened(mail, [], people[::-1]),
            relays[0].deliveries.admit([], mail),
            relays[1].deliveries.admit([], mail),
        )


async def test_an_id_that_comes_in_another_message_is_a_replay_and_claims_nobody(store: Store, clock: Clock) -> None:
    await store.deliveries.admit([], opened(clock=clock))
    with pytest.raises(Replayed):
        await store.deliveries.admit([], opened(BEA, fingerprint=OTHER, clock=clock))
    assert await admit(store, [], opened(BEA, clock=clock)) == {BEA: "due"}


async def test_the_same_id_from_another_sae_is_another_mail(store: Store, clock: Clock) -> None:
    await store.deliveries.admit([], opened(clock=clock))
    other = replace(opened(fingerprint=OTHER, clock=clock), master_sae="3")
    assert await admit(store, [], other) == {BEN: "due"}


async def test_many_at_once_share_a_transaction_and_each_is_told_its_own(store: Store, clock: Clock) -> None:
    await store.received.put("g", "2", {"k": KEY})
    one, other = opened(clock=clock), opened(fingerprint=OTHER, id=b"j" * 16, clock=clock)
    found = await asyncio.gather(
        admit(store, [], one),
        admit(store, [bound("k")], one),
        admit(store, [bound("k", fingerprint=OTHER)], other),
        admit(store, [], replace(one, fingerprint=OTHER)),
        admit(store, [], other),
        return_exceptions=True,
    )
    assert [each if isinstance(each, dict) else type(each) for each in found] == [
        {BEN: "due"}, {BEN: "busy"}, KeyUsed, Replayed, {BEN: "due"},
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["ben\0@bob.example", "b\ud800n@bob.example", "x" * 100_000], ids=ascii)
async def test_any_string_is_a_mailbox(store: Store, clock: Clock, name: str) -> None:
    mail = opened(name, clock=clock)
    assert await admit(store, [], mail) == {name: "due"}
    assert await store.deliveries.settle_opened(mail, [name]) == {name}


async def test_no_address_stands_in_the_database(store: Store, backend: Backend, clock: Clock) -> None:
    mail = opened(clock=clock)
    await store.deliveries.admit([], mail)
    await store.deliveries.settle_opened(mail, [BEN])
    for table in ("opened_mails", "deliveries"):
        rows = await backend.run(f"SELECT * FROM {table}")
        assert len(rows) == 1
        assert b"bob" not in b"".join(each for each in rows[0] if isinstance(each, bytes))


async def test_what_could_not_be_opened_any_more_is_forgotten(store: Store, backend: Backend, clock: Clock) -> None:
    await store.deliveries.settle_opened(opened(BEN, BEA, clock=clock), [BEN, BEA])
    await store.deliveries.admit([], opened(BEN, BEA, clock=clock))
    clock.now += A_WEEK / 2
    await store.deliveries.admit([], opened(id=b"j" * 16, clock=clock))
    await store.deliveries.settle_opened(opened(id=b"j" * 16, clock=clock), [BEN])
    await store.deliveries.expire()
    assert len(await backend.run("SELECT * FROM opened_mails")) == 2
    clock.now += A_WEEK / 2 + 1
    await store.deliveries.expire()
    for table in ("opened_mails", "deliveries"):
        assert len(await backend.run(f"SELECT * FROM {table}")) == 1


# --- what fails ----------------------------------------------------------------------------------------


@pytest.fixture(params=["before it begins", "while it waits", "when it is over"])
def moment(request: pytest.FixtureRequest) -> Iterator[int]:
    """How many turns of the loop a caller has before it is cancelled."""
    yield {"before it begins": 0, "while it waits": 3, "when it is over": 200}[request.param]


async def test_who_is_cancelled_has_claimed_nobody(store: Store, clock: Clock, moment: int) -> None:
    mail = opened(clock=clock)
    task = asyncio.create_task(store.deliveries.admit([], mail))
    for _ in range(moment):
        await asyncio.sleep(0)
    was_over = task.done()
    task.cancel()
    await asyncio.wait([task])
    if not was_over:
        assert await admit(store, [], mail) == {BEN: "due"}


async def test_who_is_cancelled_ends_no_claim_of_others(store: Store, clock: Clock) -> None:
    mail = opened(clock=clock)
    await store.deliveries.admit([], mail)
    task = asyncio.create_task(store.deliveries.admit([], mail))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert await admit(store, [], mail) == {BEN: "busy"}


async def test_a_database_that_does_not_answer_holds_and_claims_nobody(
    backend: Backend, secret: SiteSecret, clock: Callable[[], float]
) -> None:
    assert isinstance(clock, Clock)
    mail = opened(clock=clock)
    async with await open_store(backend.where, secret, clock=clock, busy_timeout=0.1) as store:
        await store.received.put("g", "2", {"k": KEY})
        async with backend.locked():
            with pytest.raises(StoreUnavailable):
                await store.deliveries.admit([bound("k")], mail)
        assert await admit(store, [bound("k")], mail) == {BEN: "due"}


_KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from relay.formats.cms import KeyUse
from relay.mail import OpenedMail
from relay.store.received_table import Bound
from relay.store.secret import SiteSecret
from relay.store.store import open_store

async def main(where, secret, settle):
    store = await open_store(where, SiteSecret.load(Path(secret)), clock=lambda: 1_700_000_000.0)
    mail = OpenedMail("2", b"i" * 16, bytes(32), 1_700_600_000.0, ("ben@bob.example",))
    await store.deliveries.admit([Bound("g", "2", ("k",), KeyUse("otp", bytes(32)))], mail)
    if settle == "settled":
        await store.deliveries.settle_opened(mail, ["ben@bob.example"])
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize(("done", "state"), [("claimed", "busy"), ("settled", "served")])
async def test_a_process_killed_right_after_a_step_has_taken_it(
    store: Store, backend: Backend, secret_path: Path, clock: Clock, done: str, state: str
) -> None:
    await store.received.put("g", "2", {"k": KEY})
    with python(_KILLED, backend.where, str(secret_path), done) as process:
        assert await asyncio.to_thread(process.wait, 60) == -9
    with pytest.raises(KeyUsed):
        await store.deliveries.admit([bound("k", fingerprint=OTHER)])
    assert await admit(store, [], opened(fingerprint=bytes(32), clock=clock)) == {BEN: state}
