"""What was found out about a KME: for how long it is believed, and of which KME.
Standard: both back ends.
"""

from __future__ import annotations

from relay.store.kme_memory import BELIEVED_S, TRYING_S
from relay.store.store import Store
from tests.integration.store.conftest import Clock

KME = ("https://kme.alice.example", "2", "1")


async def test_it_is_believed_of_the_same_kme_for_30_days_by_the_last_trial(store: Store, clock: Clock) -> None:
    await store.trials.remember(KME, ("A", 128, None), "kept")
    await store.trials.remember(KME, ("A", 128, None), "dropped")
    assert await store.trials.recall(KME, ("A", 128, None)) == "dropped"
    assert await store.trials.recall(KME, ("A", 64, None)) is None
    assert await store.trials.recall((*KME[:2], "3"), ("A", 128, None)) is None
    clock.now += BELIEVED_S
    assert await store.trials.recall(KME, ("A", 128, None)) is None
    clock.now -= BELIEVED_S + 1
    assert await store.trials.recall(KME, ("A", 128, None)) is None, "the clock was ahead at the trial"


async def test_one_process_tries_a_kme_at_a_time_and_one_that_was_killed_meanwhile_is_not_waited_for_long(
    store: Store, clock: Clock
) -> None:
    await store.trials.remember(KME, ("A", 128, None), "kept")
    assert await store.trials.begin(KME[:2])
    assert not await store.trials.begin(KME[:2])
    assert await store.trials.begin(("https://other.alice.example", "2"))
    await store.trials.end(KME[:2])
    assert await store.trials.begin(KME[:2])
    clock.now += TRYING_S + 1
    assert await store.trials.begin(KME[:2])
    assert await store.trials.recall(KME, ("A", 128, None)) == "kept"
