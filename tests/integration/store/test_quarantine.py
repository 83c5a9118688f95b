"""The quarantine over each back end: one entry a message, sealed at rest, gone only when nobody waits for it.
Standard: what was put in is there after a crash; a row that was changed gives an error and never a message.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings as with_settings, strategies as st

from relay.errors import QuarantineFull, StoreUnavailable
from relay.mail import Envelope, Mail, Origin, Recipient
from relay.store.quarantine import CLAIM_S, MOST_BETWEEN_S, WAITED_KEEP_FOR_S, PutAside, Room, Total
from relay.store.quarantine_table import Arrival, Kept
from relay.store.secret import SiteSecret
from relay.store.store import Store, open_store
from tests.integration.store.conftest import Clock
from tests.integration.store.test_at_rest import keep_only_newest, on_disk
from tests.integration.store.test_trouble import OPEN
from tests.testlib.databases import Backend, python

MESSAGE = b"Subject: x\r\n\r\nnobody else may read this\r\n"
KEY, OTHER = bytes(32), bytes(31) + b"x"
ROOM = Room(10**9, 10**9)
ORIGIN = Origin(addr="192.0.2.1", helo="h\u00e9lo")


def arrival(*addresses: str, message: bytes = MESSAGE, reason: str = "tampered", party: str = "alice") -> Arrival:
    recipients = tuple(Recipient(each, "NEVER", "rfc822;x") for each in addresses or ("a@x",))
    envelope = Envelope("s@alice", recipients, smtputf8=True, ret="HDRS", envid="QQ1")
    mail = Mail(envelope, message, id="0123", trace=b"Received: \xff\r\n", origin=ORIGIN)
    return Arrival(mail, reason, "its tag\0does not match", party, message, "aes", "alice", "carol")


async def find(store: Store, put: PutAside) -> Kept:
    found = await store.quarantine.find(put.id)
    assert found is not None
    return found


async def test_a_message_comes_back_as_it_was_put_in_with_all_that_was_said_of_it(store: Store, clock: Clock) -> None:
    what = arrival("b@x", "a@x", "\u00fc@x")
    put = await store.quarantine.put(KEY, what, ROOM)
    assert (put.new, put.recipients) == (True, what.mail.envelope.recipients)
    assert await store.quarantine.message(put.id) == MESSAGE
    [kept] = await store.quarantine.all()
    assert kept == await find(store, put)
    assert (kept.reason, kept.cause, kept.party, kept.arrived_at) == ("tampered", what.cause, "alice", clock.now)
    assert sorted(kept.envelope.recipients, key=str) == sorted(what.mail.envelope.recipients, key=str)
    assert (kept.envelope.sender, kept.envelope.smtputf8, kept.envelope.ret, kept.envelope.envid) == (
        "s@alice", True, "HDRS", "QQ1",
    )  # fmt: skip
    assert (kept.trace, kept.origin, kept.mail_id, kept.protection) == (b"Received: \xff\r\n", ORIGIN, "0123", "aes")
    assert await store.quarantine.all("expired") == []


async def test_a_message_that_comes_again_is_the_same_entry_with_more_recipients(store: Store) -> None:
    first = await store.quarantine.put(KEY, arrival("a@x", "b@x"), ROOM)
    again = await store.quarantine.put(KEY, arrival("b@x", "c@x", "c@x", reason="expired"), ROOM)
    assert (again.id, again.new, [each.address for each in again.recipients]) == (first.id, False, ["c@x"])
    kept = await find(store, first)
    assert (kept.envelope.addresses, kept.arrivals, kept.reason) == (("a@x", "b@x", "c@x"), 2, "tampered")
    assert (await store.quarantine.put(OTHER, arrival(), ROOM)).id != first.id
    assert (await store.quarantine.has(KEY), await store.quarantine.has(KEY[:-1] + b"y")) == (True, False)


async def test_relays_that_put_the_same_message_at_once_make_one_entry(
    backend: Backend, secret: SiteSecret, store: Store
) -> None:
    async with await open_store(backend.where, secret) as other:
        stores = [store, other] * 5
        puts = await asyncio.gather(
            *(each.quarantine.put(KEY, arrival(f"{n}@x"), ROOM) for n, each in enumerate(stores))
        )
    assert len({put.id for put in puts}) == 1
    assert sum(put.new for put in puts) == 1
    [kept] = await store.quarantine.all()
    assert (len(kept.envelope.recipients), kept.arrivals) == (10, 10)


async def test_a_message_goes_when_the_last_one_who_waits_has_it(store: Store, backend: Backend) -> None:
    put = await store.quarantine.put(KEY, arrival("a@x", "b@x"), ROOM)
    assert not await store.quarantine.delivered(put.id, ["a@x"])
    assert (await find(store, put)).envelope.addresses == ("b@x",)
    assert await store.quarantine.delivered(put.id, ["b@x"])
    assert await store.quarantine.find(put.id) is None
    assert await backend.run("SELECT * FROM quarantine_recipients") == []
    with pytest.raises(StoreUnavailable, match="not in quarantine any more"):
        await store.quarantine.message(put.id)


async def test_a_recipient_who_comes_while_the_last_one_is_delivered_is_not_lost(store: Store) -> None:
    for _ in range(10):
        put = await store.quarantine.put(KEY, arrival("a@x"), ROOM)
        done = await asyncio.gather(
            store.quarantine.delivered(put.id, ["a@x"]), store.quarantine.put(KEY, arrival("b@x"), ROOM),
            return_exceptions=True,
        )  # fmt: skip
        waiting = [address for kept in await store.quarantine.all() for address in kept.envelope.addresses]
        refused = isinstance(done[1], StoreUnavailable)
        assert waiting == ([] if refused else ["b@x"]), done
        for kept in await store.quarantine.all():
            await store.quarantine.drop(kept.id)


async def test_one_release_at_a_time_has_a_message(store: Store, clock: Clock) -> None:
    put = await store.quarantine.put(KEY, arrival(), ROOM)
    assert [await store.quarantine.claim(put.id) for _ in range(2)] == [True, False]
    await store.quarantine.unclaim(put.id)
    assert await store.quarantine.claim(put.id)
    clock.now += CLAIM_S
    assert await store.quarantine.claim(put.id), "a release that was killed is not waited for for ever"
    assert not await store.quarantine.claim("nobody")


async def test_neither_a_party_nor_all_together_get_more_room_than_they_may(store: Store) -> None:
    room = Room(total=20_000, share=10_000)
    big = bytes(6_000)
    first = await store.quarantine.put(KEY, arrival(message=big), room)
    with pytest.raises(QuarantineFull, match=r"'alice' has \d+ bytes in quarantine, and may have 10000"):
        await store.quarantine.put(OTHER, arrival(message=big), room)
    await store.quarantine.put(OTHER, arrival(message=big, party=""), room)
    with pytest.raises(QuarantineFull, match="may hold 20000"):
        await store.quarantine.put(b"y" * 32, arrival(message=big, party="carol"), room)
    with pytest.raises(QuarantineFull):  # recipients take room, too
        await store.quarantine.put(KEY, arrival(*(f"{n}@x" for n in range(20))), room)
    assert [kept.envelope.addresses for kept in await store.quarantine.all()] == [("a@x",), ("a@x",)]
    assert (await store.quarantine.put(KEY, arrival(), room)).recipients == (), "nothing new needs no room"
    await store.quarantine.drop(first.id)
    await store.quarantine.put(b"y" * 32, arrival(message=big, party="carol"), room)


async def test_totals_are_by_reason_party_and_who_is_named(store: Store) -> None:
    assert await store.quarantine.totals() == {}
    await store.quarantine.put(KEY, arrival(), ROOM)
    await store.quarantine.put(OTHER, arrival(reason="expired"), ROOM)
    totals = await store.quarantine.totals()
    assert {key: total.number for key, total in totals.items()} == {
        ("tampered", "alice", "carol"): 1,
        ("expired", "alice", "carol"): 1,
    }
    assert all(isinstance(total, Total) and total.size > len(MESSAGE) for total in totals.values())


@pytest.mark.promise("Received keys and messages in quarantine lie sealed under the site's secret")
async def test_no_message_lies_in_the_database_in_clear(store: Store, backend: Backend) -> None:
    await store.quarantine.put(KEY, arrival(), ROOM)
    [row] = await backend.run("SELECT * FROM quarantine")
    assert all(MESSAGE not in value for value in row if isinstance(value, bytes))


@pytest.mark.parametrize(
    "change",
    ["sealed = ?", "facts = replace(facts, 's@alice', 's@eve')", "reason = 'unprotected'", "id = 'ffffffffffff'"],
)
async def test_a_row_that_was_changed_gives_an_error_and_no_message(
    store: Store, backend: Backend, change: str
) -> None:
    put = await store.quarantine.put(KEY, arrival(), ROOM)
    await backend.run(f"UPDATE quarantine SET {change}", *([bytes(80)] if "?" in change else []))
    with pytest.raises(StoreUnavailable, match="changed"):
        await store.quarantine.message("ffffffffffff" if "id =" in change else put.id)


async def test_a_dropped_message_is_in_none_of_sqlites_files(sqlite: Backend, secret: SiteSecret) -> None:
    async with await open_store(sqlite.where, secret) as store:
        put = await store.quarantine.put(KEY, arrival(message=bytes(100_000)), ROOM)
        [(sealed,)] = await sqlite.run("SELECT sealed FROM quarantine")
        pieces = [sealed[start : start + 64] for start in range(0, len(sealed), 8192)]
        assert any(piece in on_disk(sqlite) for piece in pieces)
        await store.quarantine.drop(put.id)
        assert not any(piece in on_disk(sqlite) for piece in pieces)


async def test_messages_move_under_a_newer_secret_and_a_missing_one_is_reported(
    backend: Backend, secret_path: Path
) -> None:
    async with await open_store(backend.where, SiteSecret.load(secret_path)) as store:
        put = await store.quarantine.put(KEY, arrival(), ROOM)
        await store.received.put("g", "alice", {"k": b"key"})
    async with await open_store(backend.where, SiteSecret(bytes(32))) as other:
        assert list((await other.missing_secrets()).values()) == [2]
    async with await open_store(backend.where, SiteSecret.rotate(secret_path)) as store:
        assert await store.reseal() == 2
        assert await store.reseal() == 0
    keep_only_newest(secret_path)
    async with await open_store(backend.where, SiteSecret.load(secret_path)) as store:
        assert await store.missing_secrets() == {}
        assert await store.quarantine.message(put.id) == MESSAGE


async def test_resealing_reports_messages_that_it_cannot_open_and_does_the_rest(
    backend: Backend, secret_path: Path
) -> None:
    async with await open_store(backend.where, SiteSecret.load(secret_path)) as store:
        bad = await store.quarantine.put(KEY, arrival(), ROOM)
        await store.quarantine.put(OTHER, arrival(), ROOM)
        await store.received.put("g", "alice", {"k": b"key"})
    await backend.run("UPDATE quarantine SET sealed = ? WHERE id = ?", bytes(80), bad.id)
    async with await open_store(backend.where, SiteSecret.rotate(secret_path)) as store:
        with pytest.raises(StoreUnavailable, match="1 quarantined messages were resealed, but 1 cannot be opened"):
            await store.reseal()
        assert list((await store.missing_secrets()).values()) == []


PUT_FOR_EVER = (
    OPEN
    + """
from relay.mail import Envelope, Mail, Recipient
from relay.store.quarantine import Room
from relay.store.quarantine_table import Arrival

async def main():
    store = await opened()
    for number in range(1_000_000):
        mail = Mail(Envelope("s@x", (Recipient("a@x"), Recipient("b@x"))), bytes(50_000))
        arrival = Arrival(mail, "tampered", "", "", mail.message)
        await store.quarantine.put(number.to_bytes(32, "big"), arrival, Room(10**9, 10**9))
        print(number, flush=True)
asyncio.run(main())
"""
)


async def test_what_was_put_in_is_there_when_the_process_was_killed(backend: Backend, secret_path: Path) -> None:
    with python(PUT_FOR_EVER, backend.where, str(secret_path)) as process:
        assert process.stdout is not None
        said = [int(await asyncio.to_thread(process.stdout.readline)) for _ in range(20)]
        process.send_signal(signal.SIGKILL)
        said += [int(line) for line in await asyncio.to_thread(process.stdout.readlines) if line.endswith("\n")]
    async with await open_store(backend.where, SiteSecret.load(secret_path)) as store:
        kept = await store.quarantine.all()
        assert len(said) <= len(kept) <= len(said) + 1
        assert all(each.envelope.addresses == ("a@x", "b@x") for each in kept)
        assert await store.quarantine.message(kept[-1].id) == bytes(50_000)


async def test_while_somebody_else_writes_nothing_is_kept_and_it_is_an_error(
    sqlite: Backend, secret: SiteSecret
) -> None:
    async with await open_store(sqlite.where, secret, busy_timeout=0.05) as store:
        async with sqlite.locked():
            with pytest.raises(StoreUnavailable):
                await store.quarantine.put(KEY, arrival(), ROOM)
        assert await store.quarantine.all() == []


async def test_a_mail_waits_from_its_first_arrival_on_and_is_forgotten_in_time(store: Store, clock: Clock) -> None:
    assert await store.first_seen.waits_for(KEY) == 0
    clock.now += 100
    assert (await store.first_seen.waits_for(KEY), await store.first_seen.waits_for(OTHER)) == (100, 0)
    clock.now += WAITED_KEEP_FOR_S + 1
    assert await store.first_seen.expire() == 2
    assert await store.first_seen.waits_for(KEY) == 0
    clock.now -= 1000
    assert await store.first_seen.waits_for(KEY) == 0, "a clock that was put back makes nobody wait for less"


async def test_a_clock_that_is_set_makes_a_mail_wait_for_a_pause_between_two_tries_at_most(
    store: Store, clock: Clock
) -> None:
    await store.first_seen.waits_for(KEY)
    clock.now += 1000
    assert await store.first_seen.waits_for(KEY) == 1000
    clock.now += 7 * 86400
    assert await store.first_seen.waits_for(KEY) == 1000 + MOST_BETWEEN_S
    clock.now -= 7 * 86400
    assert await store.first_seen.waits_for(KEY) == 1000 + MOST_BETWEEN_S
    clock.now += 1000
    assert await store.first_seen.waits_for(KEY) == 2000 + MOST_BETWEEN_S, "and it goes on from there"


Steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "deliver", "drop"]), st.integers(0, 2), st.lists(st.sampled_from("abc"), min_size=1)
    ),
    max_size=12,
)


@given(Steps)
@with_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_in_whatever_order_those_wait_who_were_put_in_and_not_delivered(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, list[str]]]
) -> None:
    async def follow() -> None:
        path = tmp_path_factory.mktemp("model") / "relay.db"
        waiting: dict[int, set[str]] = {}
        ids: dict[int, str] = {}
        async with await open_store(path, SiteSecret(bytes(32))) as store:
            for step, number, people in steps:
                if step == "put":
                    put = await store.quarantine.put(bytes([number]) * 32, arrival(*people), ROOM)
                    assert put.new is (number not in waiting)
                    assert {each.address for each in put.recipients} == set(people) - waiting.get(number, set())
                    waiting.setdefault(number, set()).update(people)
                    ids[number] = put.id
                elif number in waiting and step == "deliver":
                    waiting[number] -= set(people)
                    assert await store.quarantine.delivered(ids[number], people) is (not waiting[number])
                elif number in waiting:
                    waiting[number] = set()
                    await store.quarantine.drop(ids[number])
                if number in waiting and not waiting[number]:
                    del waiting[number]
            found = {kept.id: set(kept.envelope.addresses) for kept in await store.quarantine.all()}
        assert found == {ids[number]: people for number, people in waiting.items()}

    asyncio.run(follow())
