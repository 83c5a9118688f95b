"""A pool that nobody draws from: a few keys stay ready, and none is drawn while the store could not remember it.
Standard: a quiet site has keys for an outage; what that costs stands in deploy/relay.toml.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping

import pytest

from relay.counting import metrics
from relay.counting.board import Board
from relay.errors import StoreUnavailable
from relay.keys import BreakerRules
from relay.keys.group import KMEGroup, Prefetch
from relay.keys.report import show
from relay.keys.ring import KeyRing, PeerKeys
from relay.kme import LinkSettings, SimulatedLink
from tests.testlib.counted import burnt_by_cause, counted
from tests.testlib.fake_kme import Certificates, FakeKME, FakeTime
from tests.testlib.long import sized
from tests.testlib.pools import accounts_agree, settled

HOURS = sized(2, 6)


class Disk:
    """IssuedKeys on a disk that may be full."""

    full = False
    fills_up = False
    """Whether it is full once keys have come."""

    async def ready(self) -> None:
        if self.full:
            raise StoreUnavailable("no space left on device")

    async def remember(self, group: str, keys: Mapping[str, bytes]) -> frozenset[str]:
        self.full = self.full or self.fills_up
        await self.ready()
        return frozenset()


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
async def ring(kme: FakeKME, time: FakeTime, disk: Disk) -> AsyncIterator[KeyRing]:
    """A ring whose low mark is 4, whose keys live 100 s, and which is tended by hand."""
    client = kme.client(timing=time.timing, retry_attempts=0, timeout=20)
    group = KMEGroup("g", [client], Prefetch(4, 16, 100), timing=time.timing)
    ring = KeyRing("alice", {"g": group}, {"bob": PeerKeys("bob", ("g",))}, issued=disk, timing=time.timing)
    group.warm("bob")
    await settled(group)
    yield ring
    await ring.close()
    assert accounts_agree(group)


async def _ready_after(ring: KeyRing, time: FakeTime, seconds: float) -> int:
    time.now += seconds
    await ring.maintain(ask=False)
    group = ring.groups["g"]
    await settled(group)
    return group.pools[0].ready("bob", 256)


async def test_an_idle_pool_keeps_a_few_keys_and_no_more(ring: KeyRing, time: FakeTime) -> None:
    ready = [await _ready_after(ring, time, seconds) for seconds in (50, 51, 50, 51, 101)]
    assert ready == [4, 4, 4, 4, 4]
    totals = ring.groups["g"].pools[0].client.accounts.totals()
    assert (totals["issued"], totals["expired"]) == (4 + 3 * 4, 3 * 4)


async def test_a_pool_that_emptied_while_the_kme_was_away_fills_when_it_is_back(
    ring: KeyRing, time: FakeTime, kme: FakeKME
) -> None:
    kme.misbehave("enc_keys", "drop", times=None)
    kme.misbehave("status", "drop", times=None)
    assert [await _ready_after(ring, time, 101) for _ in range(5)] == [0] * 5
    kme.behave()
    assert await _ready_after(ring, time, 200) == 4


async def test_a_pool_that_emptied_while_the_kme_had_no_keys_fills_when_it_has_some(
    ring: KeyRing, time: FakeTime, kme: FakeKME
) -> None:
    bits, kme.link.bits = kme.link.bits, 0
    assert [await _ready_after(ring, time, seconds) for seconds in (101, 0.01, 0.01, 101, 0.01)] == [0] * 5
    kme.link.bits = bits
    assert [await _ready_after(ring, time, seconds) for seconds in (0.01, 10)] == [0, 4]


async def test_a_kme_that_is_away_is_said_once_an_hour_however_often_it_is_tried(
    ring: KeyRing, time: FakeTime, kme: FakeKME, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="relay.keys")
    for call in ("enc_keys", "status"):
        kme.misbehave(call, "drop", times=None)
    time.now += 101
    for tend in range(HOURS * 720):
        await _maintained(ring, time, tend)
    said = Counter(record.getMessage().split()[0] for record in caplog.records)
    assert HOURS <= said["kme_call_failed"] <= 2 * (HOURS + 1)
    assert said.total() - said["keys_burnt"] < 4 * HOURS, said
    burnt = ring.groups["g"].pools[0].client.accounts.totals()["burnt"]
    assert burnt <= sum(request.content["number"] for request in kme.got("enc_keys")), (
        "what was not asked for, was not burnt"
    )
    assert len(kme.got("status")) <= HOURS * 3600 / BreakerRules().longest, "and it is not asked all the time"


async def _maintained(ring: KeyRing, time: FakeTime, number: int) -> int:
    """How many keys are ready after it was tended as it is every 5 s."""
    time.now += 5
    await ring.maintain(ask=number % 6 == 0)
    group = ring.groups["g"]
    await settled(group)
    return group.pools[0].ready("bob", 256)


async def test_the_first_mail_after_a_quiet_time_has_no_more_drawn(ring: KeyRing, time: FakeTime) -> None:
    assert await _ready_after(ring, time, 101) == 4
    await ring.take("bob", level="otp")
    await settled(ring.groups["g"])
    assert ring.groups["g"].pools[0].ready("bob", 256) == 3


async def test_no_key_is_drawn_while_the_store_is_full_which_is_said_and_ends_by_itself(
    ring: KeyRing, time: FakeTime, kme: FakeKME, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    board = Board()
    caplog.set_level(logging.INFO, logger="relay.keys")
    disk.full = True
    drawn = len(kme.got("enc_keys"))
    for _ in range(5):
        await _ready_after(ring, time, 101)
        with pytest.raises(StoreUnavailable):
            await ring.take("bob", level="otp")
    [row] = ring.pool_rows()
    assert "no keys are drawn, the store cannot remember them: no space left" in row.trouble
    show(ring, board)
    assert counted(board, metrics.KEYS_WITHHELD, "kme-a") == 1
    assert len(kme.got("enc_keys")) == drawn
    disk.full = False
    assert await _ready_after(ring, time, 10) == 4
    [row] = ring.pool_rows()
    assert row.trouble == ""
    show(ring, board)
    assert counted(board, metrics.KEYS_WITHHELD, "kme-a") == 0
    events = [record.getMessage().split()[0] for record in caplog.records]
    assert events.count("keys_not_drawn") == 1


async def test_keys_that_the_store_cannot_remember_are_burnt_and_others_drawn_when_it_has_room_again(
    ring: KeyRing, time: FakeTime, kme: FakeKME, disk: Disk
) -> None:
    disk.fills_up = True
    drawn = len(kme.got("enc_keys"))
    assert [await _ready_after(ring, time, 101), await _ready_after(ring, time, 10)] == [0, 0]
    [row] = ring.pool_rows()
    assert "no space left" in row.trouble
    disk.full = disk.fills_up = False
    assert await _ready_after(ring, time, 10) == 4
    [row] = ring.pool_rows()
    assert row.trouble == ""
    assert len(kme.got("enc_keys")) == drawn + 2, "none was drawn while the store was full"
    assert burnt_by_cause(ring.groups["g"].pools[0].client.accounts) == {"not remembered": 4}


async def test_a_group_for_pads_alone_keeps_no_keys_of_the_usual_size_ready(kme: FakeKME, time: FakeTime) -> None:
    """Nobody would ever take one: they would expire, day after day."""
    group = KMEGroup("g", [kme.client(timing=time.timing)], Prefetch(4, 16, 100), timing=time.timing, use="otp")
    async with KeyRing("alice", {"g": group}, {"bob": PeerKeys("bob", ("g",))}, timing=time.timing) as ring:
        await settled(group)
        await ring.maintain(ask=False)
        ring.set_peers({"bob": PeerKeys("bob", ("g",)), "carol": PeerKeys("carol", ("g",))})
        await settled(group)
        assert kme.got("enc_keys") == []


async def test_the_store_of_a_slow_link_grows_while_two_relays_are_idle(
    certificates: Certificates, time: FakeTime
) -> None:
    """12.7 bit/s, as was measured in the field: 0.05 keys a second."""
    settings = LinkSettings(key_rate=12.7, stored_key_limit=1000, starting_fill=0.1, max_sae_id_count=0, lifetime=1e6)
    link = SimulatedLink(settings, time.clock)
    async with FakeKME(certificates, link) as one, FakeKME(certificates, link) as two:
        limits: dict[str, int] = {"max_key_count": 1000}
        rings = []
        for own, peer, kme in (("alice", "bob", one), ("bob", "alice", two)):
            kme.limits |= limits
            group = KMEGroup("g", [kme.client(timing=time.timing)], Prefetch(8, 32, 240), timing=time.timing)
            rings.append(KeyRing(own, {"g": group}, {peer: PeerKeys(peer, ("g",))}, timing=time.timing))
            group.warm(peer)
            await settled(group)
        drawn = link.issued.total()
        stored: list[int] = []
        for tend in range(240):
            for ring in rings:
                await ring.maintain(ask=tend % 6 == 0)
                await settled(ring.groups["g"])
            time.now += 5
            stored.append(link.stored_key_count)
        assert drawn == 16
        assert link.issued.total() <= drawn + 2
        assert stored[-1] - stored[0] >= 50
        await rings[0].take("bob")
        await settled(rings[0].groups["g"])
        assert link.issued.total() <= drawn + 5, "one mail has no more than a few drawn"
        for ring in rings:
            await ring.close()
