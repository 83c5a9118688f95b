"""The pair of clients with KMEs that hang for each other and drop keys, as next-door-key-simulator does; and its economy.
Standard: ETSI GS QKD 014 V1.1.1, 5.3, leaves open what becomes of keys that nobody has fetched.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from relay.keys import CachedKMClient, KeyNotFound, NotAsked, get_optimized_km_clients
from tests.integration.keys.test_undelivered import _kmes
from tests.testlib.next_door import count_undelivered, hang_for_each_other


async def _used(mine: CachedKMClient, theirs: CachedKMClient, slave: int, times: int) -> None:
    """Draws keys at one side, and fetches each at the other."""
    for _ in range(times):
        [key] = await mine.request_enc_keys(slave)
        assert await theirs.request_dec_keys(3 - slave, [key.key_ID]) == [key]


async def test_both_clients_at_once_never_hang_kmes_that_wait_for_each_other_and_lose_no_key_that_is_dropped(
    tmp_path: Path,
) -> None:
    async with _kmes(tmp_path) as kmes:
        count_undelivered(kmes, drops=True)
        hang_for_each_other(kmes)
        alice, bob = pair = get_optimized_km_clients(tmp_path)
        async with pair, asyncio.timeout(30):
            await asyncio.gather(_used(alice, bob, 1, 6), _used(bob, alice, 2, 6))
        assert sum(kmes.link.issued.values()) == 12 + 2, "a trial costs two keys, and nothing is kept ready"


async def test_callers_who_come_at_once_to_kmes_that_drop_keys_lose_none(tmp_path: Path) -> None:
    async with _kmes(tmp_path) as kmes:
        count_undelivered(kmes, drops=True)
        alice, bob = pair = get_optimized_km_clients(tmp_path)
        async with pair, asyncio.timeout(30):
            began = asyncio.create_task(_used(alice, bob, 1, 1))
            while not kmes.km1.got("enc_keys"):
                await asyncio.sleep(0)
            await asyncio.gather(began, *(_used(alice, bob, 1, 3) for _ in range(4)))


async def test_more_keys_than_fit_one_request_are_cut_to_it_at_kmes_that_drop_keys(tmp_path: Path) -> None:
    async with _kmes(tmp_path) as kmes:
        count_undelivered(kmes, drops=True)
        alice, bob = pair = get_optimized_km_clients(tmp_path)
        async with pair, asyncio.timeout(30):
            for _ in range(2):
                keys = await alice.request_enc_keys(1, number=200)
                assert len(keys) == 128
                assert await bob.request_dec_keys(2, [key.key_ID for key in keys]) == keys


async def test_a_pair_that_keeps_nothing_ready_tries_nothing(tmp_path: Path) -> None:
    async with _kmes(tmp_path) as kmes:
        alice, bob = pair = get_optimized_km_clients(tmp_path, cache=0)
        async with pair:
            await _used(alice, bob, 1, 3)
        assert kmes.link.issued["KM1"] == 3


async def test_a_pair_that_is_used_once_costs_one_key_and_more_are_kept_ready_with_use(tmp_path: Path) -> None:
    async with _kmes(tmp_path, drops_undelivered=False, max_sae_id_count=0) as kmes:
        alice, bob = pair = get_optimized_km_clients(tmp_path)
        async with pair:
            await _used(alice, bob, 1, 1)
        assert kmes.link.issued["KM1"] == 1
        async with pair:
            await _used(alice, bob, 1, 40)
        assert 41 + 2 < kmes.link.issued["KM1"] <= 2 * 41 + 2, "as many are kept ready as were used"


async def test_with_kmes_that_keep_keys_a_fetch_does_not_wait_for_the_refill_of_the_other_side(tmp_path: Path) -> None:
    async with _kmes(tmp_path, drops_undelivered=False, max_sae_id_count=0) as kmes:
        alice, bob = pair = get_optimized_km_clients(tmp_path)
        async with pair, asyncio.timeout(30):
            await _used(alice, bob, 1, 3)
            drawn, released = await alice.request_enc_keys(1), asyncio.Event()
            kmes.km1.misbehave("enc_keys", "late", times=None, until=released)
            before = len(kmes.km1.got("enc_keys"))
            drawing = asyncio.create_task(alice.request_enc_keys(1, number=60))
            while len(kmes.km1.got("enc_keys")) == before:
                await asyncio.sleep(0)
            assert await bob.request_dec_keys(2, [drawn[0].key_ID]) == drawn
            released.set()
            assert await drawing


async def test_a_kme_that_hangs_makes_calls_to_the_other_one_an_error_within_their_timeout(tmp_path: Path) -> None:
    async with _kmes(tmp_path) as kmes:
        alice, bob = pair = get_optimized_km_clients(tmp_path, timeout=0.5, retry_delay=20)
        async with pair, asyncio.timeout(15):
            kmes.km1.misbehave("enc_keys", "hang", times=None)
            hanging = asyncio.create_task(alice.request_enc_keys(1))
            while not kmes.km1.got("enc_keys"):
                await asyncio.sleep(0)
            for call in (bob.request_enc_keys(2), bob.request_dec_keys(2, ["x"])):
                with pytest.raises(NotAsked, match=r"the other KME of the pair has not answered within 0\.5 s"):
                    await call
            hanging.cancel()


async def test_a_fetch_that_its_caller_gave_up_keeps_its_turn_until_its_key_has_come(tmp_path: Path) -> None:
    async with _kmes(tmp_path) as kmes:
        alice, bob = pair = get_optimized_km_clients(tmp_path)
        async with pair, asyncio.timeout(30):
            [drawn] = await alice.request_enc_keys(1)
            answers = asyncio.Event()
            kmes.km2.misbehave("dec_keys", "late", until=answers)
            given_up = asyncio.create_task(bob.request_dec_keys(2, [drawn.key_ID]))
            while not kmes.km2.got("dec_keys"):
                await asyncio.sleep(0)
            given_up.cancel()
            await asyncio.wait([given_up])
            fetching = asyncio.create_task(alice.request_dec_keys(1, ["x"], patient=False))
            for _ in range(100):
                await asyncio.sleep(0.002)
            assert not kmes.km1.got("dec_keys"), "KMEs that wait for each other would hang now"
            answers.set()
            with pytest.raises(KeyNotFound):
                await fetching
            assert await bob.request_dec_keys(2, [drawn.key_ID]) == [drawn]
