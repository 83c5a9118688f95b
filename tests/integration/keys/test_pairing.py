"""The pair of clients with KMEs that hang for each other and drop keys, as next-door-key-simulator does; and its economy.
Standard: ETSI GS QKD 014 V1.1.1, 5.3, leaves open what becomes of keys that nobody has fetched.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from relay.keys import CachedKMClient, get_optimized_km_clients
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


async def test_a_pair_that_is_used_once_costs_one_key_and_more_are_kept_ready_with_use(tmp_path: Path) -> None:
    async with _kmes(tmp_path, drops_undelivered=False, max_sae_id_count=0) as kmes:
        alice, bob = pair = get_optimized_km_clients(tmp_path)
        async with pair:
            await _used(alice, bob, 1, 1)
        assert kmes.link.issued["KM1"] == 1
        async with pair:
            await _used(alice, bob, 1, 40)
        assert 41 + 2 < kmes.link.issued["KM1"] <= 2 * 41 + 2, "as many are kept ready as were used"
