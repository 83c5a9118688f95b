"""What is remembered of deliveries, over each back end.
Standard: what is delivered is not kept, what is not is kept as it was; transactions leave each other's recipients alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence, Set as AbstractSet
from contextlib import AsyncExitStack

import pytest
from sqlalchemy import Connection

from relay.counting import metrics
from relay.errors import DeliveryUnderWay, StoreUnavailable
from relay.mail import recipient_name
from relay.runtime.aio import boot_time
from relay.store.claims import LEASE_S, PATIENCE_S
from relay.store.delivery_attempts import KEEP_FOR_S, Begun, WaitingCopy
from relay.store.secret import SiteSecret
from relay.store.store import Store, open_store
from tests.integration.store.conftest import Clock
from tests.testlib.counted import counted
from tests.testlib.databases import Backend

KEY = bytes(32)
NOTHING: tuple[AbstractSet[str], tuple[WaitingCopy, ...]] = (frozenset(), ())


async def one_try(
    store: Store, delivered: Sequence[str] = (), *forms: WaitingCopy, others: Sequence[str] = ()
) -> tuple[AbstractSet[str], tuple[WaitingCopy, ...]]:
    """A try for all whom this names: what was known before it, which is replaced."""
    recipients = [*delivered, *(each for form in forms for each in form.recipients), *others]
    begun = await store.deliveries.begin("outgoing", KEY, recipients, intent=True)
    await store.deliveries.settle(KEY, begun, recipients, delivered, forms)
    return begun.delivered, begun.copies


async def known(store: Store, *recipients: str, key: bytes = KEY) -> tuple[AbstractSet[str], tuple[WaitingCopy, ...]]:
    """What is known, which is left as it is."""
    begun = await store.deliveries.begin("outgoing", key, recipients, intent=True)
    store.claims.drop(recipient_name(key, each) for each in recipients)
    await store.claims.go_on()
    return begun.delivered, begun.copies


async def test_the_journal_gives_back_what_it_was_told_and_forgets_in_time(store: Store, clock: Clock) -> None:
    assert await one_try(store, ["a@x"], WaitingCopy(("c@y", "d@y"), {"n": 1}, b"sealed")) == NOTHING
    delivered, [form] = await known(store, "a@x", "c@y", "d@y", "f@z")
    assert delivered == {"a@x"}
    assert (sorted(form.recipients), form.facts, form.message) == (["c@y", "d@y"], {"n": 1}, b"sealed")
    assert await known(store, "a@x", key=bytes(31) + b"x") == NOTHING
    assert await store.deliveries.expire(clock.now + KEEP_FOR_S) == 0
    assert await store.deliveries.expire(clock.now + KEEP_FOR_S + 1) == 2, "two waited, one had it"
    assert await known(store, "a@x", "c@y") == NOTHING


async def test_a_form_that_waits_for_some_of_its_recipients_is_kept_for_them(store: Store) -> None:
    await one_try(store, [], WaitingCopy(("c@y", "d@y"), {}, b"sealed"))
    _, [form] = await known(store, "c@y", "d@y")
    await one_try(store, ["c@y"], WaitingCopy(("d@y",), form.facts, form.message, form.name))
    assert await known(store, "c@y", "d@y") == ({"c@y"}, (WaitingCopy(("d@y",), {}, b"sealed", form.name),))


async def test_a_transaction_leaves_the_recipients_of_another_one_alone(store: Store) -> None:
    await one_try(store, ["a@x"], WaitingCopy(("b@y",), {}, b"sealed"))
    await one_try(store, others=["c@z"])
    delivered, forms = await known(store, "a@x", "b@y")
    assert (delivered, len(forms)) == ({"a@x"}, 1)


async def test_who_has_the_mail_is_known_until_the_recipient_is_forgotten(store: Store) -> None:
    await one_try(store, ["a@x"], WaitingCopy(("b@y",), {}, b"sealed"))
    await one_try(store, others=["b@y"])
    assert await known(store, "a@x", "b@y") == ({"a@x"}, ())
    await one_try(store, others=["a@x"])
    assert await known(store, "a@x", "b@y") == NOTHING


# --- who is at it ---------------------------------------------------------------------------------------


@pytest.fixture
async def relays(backend: Backend, secret: SiteSecret) -> AsyncIterator[tuple[Store, Store]]:
    """Two relays of a site on one database."""
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(await open_store(backend.where, secret)) for _ in range(2)]
        yield one, two


async def begin(store: Store, *recipients: str, key: bytes = KEY) -> Begun:
    return await store.deliveries.begin("outgoing", key, recipients or ("a@x", "b@y"), intent=True)


async def test_of_two_relays_at_once_one_has_the_mail_and_the_other_goes_on_where_that_one_has_ended(
    relays: tuple[Store, Store],
) -> None:
    one, two = relays
    for number in range(10):
        key = bytes(31) + bytes([number + 1])
        both = await asyncio.gather(
            begin(one, "a@x", "b@y", key=key), begin(two, "b@y", "a@x", key=key), return_exceptions=True
        )
        assert sorted(type(each).__name__ for each in both) == ["Begun", "DeliveryUnderWay"], both
    begun = await begin(one)
    with pytest.raises(DeliveryUnderWay):
        await begin(two, "b@y", "c@z")
    await one.deliveries.settle(KEY, begun, ["a@x", "b@y"], ["a@x"], [WaitingCopy(("b@y",), {}, b"sealed")])
    if two.deliveries._may_know(KEY):  # with SQLite one process has the journal
        found = await begin(two, "a@x", "b@y", "c@z")
        assert found.delivered == {"a@x"}
        assert [form.message for form in found.copies] == [b"sealed"]


async def test_where_the_database_was_away_nobody_takes_over_before_all_could_write_what_they_have_done(
    relays: tuple[Store, Store], backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = relays
    if backend.name == "sqlite":
        pytest.skip("it is never away")
    await begin(one)
    await begin(two, "c@z")
    await backend.end_leases()
    monkeypatch.setattr(two.claims, "_clock", lambda: boot_time() + LEASE_S)
    for _ in range(2):
        with pytest.raises(DeliveryUnderWay):
            await begin(two)
        await two.claims.end_claims()
    monkeypatch.setattr(two.claims, "_clock", lambda: boot_time() + LEASE_S + PATIENCE_S)
    assert await begin(two)


@pytest.mark.usefixtures("impatient")
async def test_a_frozen_process_takes_nothing_away_from_the_one_that_has_the_mail_now(
    relays: tuple[Store, Store], backend: Backend
) -> None:
    one, two = relays
    frozen = await begin(one)
    await backend.end_lease(frozen.relay)
    begun = await begin(two)
    assert counted(two.claims.board, metrics.INTERRUPTED, "outgoing") == 2
    await two.deliveries.remember(KEY, [recipient_name(KEY, "a@x")])
    await one.deliveries.settle(KEY, frozen, ["a@x", "b@y"], [], [WaitingCopy(("a@x", "b@y"), {}, b"late")])
    await two.deliveries.settle(KEY, begun, ["a@x", "b@y"], ["a@x"], [WaitingCopy(("b@y",), {}, b"sealed")])
    for store in [two] if backend.name == "sqlite" else relays:
        delivered, forms = await known(store, "a@x", "b@y")
        assert (delivered, [form.message for form in forms]) == ({"a@x"}, [b"sealed"])


async def test_what_was_begun_before_a_lease_was_over_must_not_leave_and_what_is_begun_later_may(
    store: Store, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = await begin(store)
    store.deliveries.check(begun.relay)
    with monkeypatch.context() as patched:
        patched.setattr(store.claims, "_clock", lambda: boot_time() + LEASE_S)
        with pytest.raises(DeliveryUnderWay):
            store.deliveries.check(begun.relay)
    store.deliveries.check(begun.relay)
    await backend.end_leases()
    await store.claims.go_on()  # a heartbeat that comes too late
    later = await begin(store, "c@z")
    with pytest.raises(DeliveryUnderWay):
        store.deliveries.check(begun.relay)
    store.deliveries.check(later.relay)


async def test_a_relay_that_gives_signs_of_life_keeps_its_claims(relays: tuple[Store, Store], backend: Backend) -> None:
    one, two = relays
    await begin(one)
    await backend.run("UPDATE relays SET until = until - ?", LEASE_S - 1)
    await one.claims.go_on()
    await backend.run("UPDATE relays SET until = until - ?", LEASE_S - 2)
    with pytest.raises(DeliveryUnderWay):
        await begin(two)


@pytest.mark.usefixtures("impatient")
async def test_where_the_database_clock_is_set_back_the_dead_keep_their_claims_for_one_lease_and_the_living_theirs(
    relays: tuple[Store, Store], backend: Backend
) -> None:
    one, two = relays
    dead, living = await begin(one), await begin(two, "c@z")
    await backend.run("UPDATE relays SET until = until + 3600")
    if backend.name == "postgresql":  # of an embedded database it is the time since this host was started
        with pytest.raises(DeliveryUnderWay):
            await begin(two)
    await two.claims.go_on()
    await backend.run("UPDATE relays SET until = until - ? WHERE relay = ?", LEASE_S, dead.relay)
    assert await begin(two)
    if backend.name == "postgresql":
        two.deliveries.check(living.relay)
        with pytest.raises(DeliveryUnderWay):
            await begin(one, "c@z")


async def test_a_mail_that_somebody_has_is_not_begun_before_that_could_be_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full() -> None:
        raise StoreUnavailable("disk full")

    begun = await begin(store)
    with monkeypatch.context() as patched:
        patched.setattr(store.deliveries, "_write_now", full)
        with pytest.raises(StoreUnavailable):
            await store.deliveries.settle(KEY, begun, ["a@x", "b@y"], ["a@x"])
        with pytest.raises(StoreUnavailable):
            await begin(store)
    assert (await begin(store)).delivered == {"a@x"}


async def test_a_claim_of_which_nobody_heard_whether_it_was_made_does_not_stay(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection to the database breaks as the transaction is committed."""

    def broken(connection: Connection, *_: object) -> None:
        connection.commit()
        raise StoreUnavailable("connection lost")

    with monkeypatch.context() as patched:
        patched.setattr(store.deliveries._attempts, "_find", broken)
        with pytest.raises(StoreUnavailable):
            await begin(store)
    assert (await begin(store)).relay
