"""The key ring: groups in order of health, the store first, reserves, forecasts, metrics, nothing left behind.
Standard: the group that issued a key travels with its key_ID, and no other is asked for it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from relay.config import TCPAddress, load_config
from relay.counting import metrics
from relay.counting.board import Board
from relay.errors import KeyDestroyed, KeyUnavailable, KeyUsed, KMEExhausted, KMEMisconfigured, StoreUnavailable
from relay.formats.cms import KeyUse
from relay.keys.build import km_client
from relay.keys.client import KMEClient
from relay.keys.group import KMEGroup, Prefetch
from relay.keys.report import STATUS_MAX_AGE_S, show, show_forecasts
from relay.keys.ring import KeyRing, PeerKeys, SupplyLimits
from relay.keys.rotation import Rotation
from relay.keys.types import KeyReference, SealingKey
from relay.kme import DevelopmentKMEs, LinkSettings, Misbehaviour
from relay.store.neighbours import CountedTogether, Neighbours, shared_memory
from tests.testlib.counted import counted
from tests.testlib.fake_kme import Certificates, FakeKME, FakeTime, is_the_servers
from tests.testlib.sites import make_site


class MemoryStore:
    """ReceivedKeys in memory."""

    def __init__(self) -> None:
        self.keys: dict[tuple[str, str, str], bytes] = {}
        self.destroyed: frozenset[str] = frozenset()
        self.opened: dict[str, tuple[str, bytes]] = {}
        self.broken = False
        self.after_look: Callable[[], object] = lambda: None
        self.seems_to_have = True

    async def ready(self) -> None:
        """Always."""

    async def put(self, group: str, master_sae: str, keys: Mapping[str, bytes]) -> None:
        if self.broken:
            raise StoreUnavailable("disk full")
        self.keys |= {(group, master_sae, key_ID): octets for key_ID, octets in keys.items()}

    def has_none_of(self, group: str, master_sae: str, key_IDs: Collection[str]) -> bool:
        return not self.seems_to_have

    async def look(
        self, group: str, master_sae: str, key_IDs: Sequence[str], use: KeyUse | None = None
    ) -> tuple[Mapping[str, bytes], frozenset[str]]:
        for key_ID in key_IDs:
            if use is not None and key_ID in self.opened and (trouble := use.trouble(*self.opened[key_ID])):
                raise KeyUsed(f"key {key_ID}: {trouble}")
        names = {key_ID: (group, master_sae, key_ID) for key_ID in key_IDs}
        held = {key_ID: self.keys[name] for key_ID, name in names.items() if name in self.keys}
        self.after_look()
        return held, self.destroyed & set(key_IDs)


@pytest.fixture
async def pair(certificates: Certificates) -> AsyncIterator[tuple[FakeKME, FakeKME]]:
    """One KME in each of two groups, with keys of their own."""
    async with FakeKME(certificates) as first, FakeKME(certificates) as second:
        yield first, second


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def board() -> Board:
    return Board()


PATIENT: dict[str, Any] = {"timeout": 10}
"""For clients of KMEs that answer, however loaded the machine is."""


@pytest.fixture
async def ring(
    pair: tuple[FakeKME, FakeKME], store: MemoryStore, time: FakeTime, board: Board
) -> AsyncIterator[KeyRing]:
    """Peer bob with groups one (preferred) and two, and peer carol with group two only."""
    groups = {
        name: KMEGroup(
            name,
            [kme.client(timing=time.timing, retry_attempts=0, name=f"kme-{name}", board=board, **PATIENT)],
            Prefetch(0, 0),
            lag_patience=0,
            board=board,
            timing=time.timing,
        )
        for name, kme in zip(("one", "two"), pair, strict=True)
    }
    peers = {
        "bob": PeerKeys("sae-bob", ("one", "two")),
        "carol": PeerKeys("sae-carol", ("two",), Rotation(max_messages=3)),
    }
    limits = {"kme-one": SupplyLimits(reserve=10, alarm=100), "kme-two": SupplyLimits(alarm=100)}
    ring = KeyRing("sae-alice", groups, peers, received=store, limits=limits, timing=time.timing, board=board)
    yield ring
    await ring.close()


async def test_a_key_comes_from_the_preferred_group_and_says_so(ring: KeyRing) -> None:
    taken = await ring.take("bob")
    assert taken.reference == KeyReference(taken.key.key_ID, "sae-alice", "sae-bob", "one")


async def test_another_group_is_used_when_the_preferred_one_fails_and_left_when_it_is_back(
    ring: KeyRing, pair: tuple[FakeKME, FakeKME], time: FakeTime
) -> None:
    pair[0].misbehave("enc_keys", "http", times=None, code=500)
    assert {(await ring.take("bob")).reference.kme_group for _ in range(8)} == {"two"}
    assert len(pair[0].got("enc_keys")) <= 5
    assert (await ring.take_pad("bob", 100)).keys[0].group == "two"
    pair[0].behave()
    time.now += 500
    for group in ring.groups.values():
        for _ in range(30):
            await group.take("sae-bob")
    assert (await ring.take("bob")).reference.kme_group == "one"


async def test_a_key_that_another_relay_got_from_the_kme_meanwhile_comes_from_the_store(
    ring: KeyRing, pair: tuple[FakeKME, FakeKME], store: MemoryStore
) -> None:
    """It was not in the store when that was looked at, and had been given away when the KME was asked."""
    reference = KeyReference("given-away", "sae-bob", "sae-alice", "one")
    store.after_look = lambda: store.keys.update({("one", "sae-bob", "given-away"): b"k" * 32})
    assert (await ring.fetch([reference]))[reference].key == b"k" * 32
    assert len(pair[0].got("dec_keys")) == 1
    store.after_look = lambda: store.opened.update({"bound": ("aes", b"f" * 32)})
    with pytest.raises(KeyUsed):
        await ring.fetch([KeyReference("bound", "sae-bob", "sae-alice", "one")], use=KeyUse("aes", b"g" * 32))


async def test_a_key_that_a_command_has_stored_is_found_once_its_kme_has_none(
    ring: KeyRing, pair: tuple[FakeKME, FakeKME], store: MemoryStore
) -> None:
    """The relay took it for new."""
    store.seems_to_have = False
    store.keys["one", "sae-bob", "taken"] = b"k" * 32
    reference = KeyReference("taken", "sae-bob", "sae-alice", "one")
    for answers in (None, Misbehaviour("http", 500)):
        pair[0].not_found = answers
        pair[0].requests.clear()
        assert (await ring.fetch([reference]))[reference].key == b"k" * 32
        assert len(pair[0].got("dec_keys")) == 1
    store.destroyed = frozenset({"gone"})
    with pytest.raises(KeyDestroyed):
        await ring.fetch([KeyReference("gone", "sae-bob", "sae-alice", "one")])


async def test_a_key_is_fetched_from_the_group_that_the_message_names_and_no_other(
    ring: KeyRing, pair: tuple[FakeKME, FakeKME], store: MemoryStore
) -> None:
    [(key_ID, octets)] = pair[1].drawn(1)
    reference = KeyReference(key_ID, "sae-bob", "sae-alice", "two")
    assert (await ring.fetch([reference]))[reference].key == octets
    assert store.keys == {("two", "sae-bob", key_ID): octets}
    assert not pair[0].got("dec_keys")
    wrong = KeyReference(key_ID, "sae-bob", "sae-alice", "one")
    assert await ring.fetch([wrong]) == {}


async def test_a_key_that_was_destroyed_here_is_not_asked_for_and_so_not_waited_for(
    ring: KeyRing, pair: tuple[FakeKME, FakeKME], store: MemoryStore
) -> None:
    store.destroyed = frozenset({"gone"})
    with pytest.raises(KeyDestroyed, match="key gone was destroyed"):
        await ring.fetch([KeyReference("gone", "sae-bob", "sae-alice", "one")])
    assert not pair[0].got("dec_keys")


@pytest.mark.parametrize(
    ("level", "fingerprint", "most", "refused"),
    [
        ("aes", b"1" * 32, 1, False),
        ("aes", b"2" * 32, 1, True),
        ("otp", b"1" * 32, 1, True),
        ("aes", b"2" * 32, 2, False),
    ],
)
async def test_a_key_that_has_opened_something_else_is_given_to_nobody(
    ring: KeyRing, store: MemoryStore, level: str, fingerprint: bytes, most: int, refused: bool
) -> None:
    store.keys["one", "sae-bob", "used"] = bytes(32)
    store.opened["used"] = ("aes", b"1" * 32)
    reference = KeyReference("used", "sae-bob", "sae-alice", "one")
    use = KeyUse(level, fingerprint, most)
    if refused:
        with pytest.raises(KeyUsed, match="key used: it has opened"):
            await ring.fetch([reference], use=use)
    else:
        assert set(await ring.fetch([reference], use=use)) == {reference}


async def test_keys_are_drawn_only_from_groups_that_serve_the_level(ring: KeyRing) -> None:
    ring.groups["one"].use = "otp"
    ring.groups["two"].use = "aes"
    assert (await ring.take("bob")).reference.kme_group == "two"
    assert (await ring.take_pad("bob", 100)).keys[0].group == "one"
    assert await ring.can_supply("bob", 100)
    ring.groups["one"].use = "aes"
    with pytest.raises(KMEMisconfigured, match="no KME group for SAE sae-bob serves level otp"):
        await ring.take_pad("bob", 100)
    with pytest.raises(KeyUnavailable):
        await ring.can_supply("bob", 100)


async def test_a_key_that_is_in_the_store_is_not_asked_for_again(ring: KeyRing, pair: tuple[FakeKME, FakeKME]) -> None:
    [(key_ID, _)] = pair[0].drawn(1)
    reference = KeyReference(key_ID, "sae-bob", "sae-alice", "one")
    first = await ring.fetch([reference])
    assert await ring.fetch([reference]) == first
    assert len(pair[0].got("dec_keys")) == 1


async def test_no_key_is_handed_over_that_could_not_be_stored(
    ring: KeyRing, pair: tuple[FakeKME, FakeKME], store: MemoryStore
) -> None:
    [(key_ID, octets)] = pair[0].drawn(1)
    reference = KeyReference(key_ID, "sae-bob", "sae-alice", "one")
    store.broken = True
    with pytest.raises(StoreUnavailable):
        await ring.fetch([reference])
    store.broken = False
    assert (await ring.fetch([reference]))[reference].key == octets


@pytest.mark.parametrize("group", ["three", None])
async def test_keys_of_a_group_that_is_not_configured_are_not_to_be_had(ring: KeyRing, group: str | None) -> None:
    with pytest.raises(KMEMisconfigured):
        await ring.fetch([KeyReference("k", "sae-bob", "sae-alice", group)])


async def test_a_peer_that_is_not_configured_has_no_keys(ring: KeyRing) -> None:
    with pytest.raises(KMEMisconfigured):
        await ring.take("mallory")


async def test_rotation_lets_one_key_wrap_several_messages_at_level_aes_only(ring: KeyRing) -> None:
    at_aes = [(await ring.take("carol")).key.key_ID for _ in range(7)]
    assert [at_aes.count(key_ID) for key_ID in dict.fromkeys(at_aes)] == [3, 3, 1]
    elsewhere = {(await ring.take("carol", level="pqc")).key.key_ID for _ in range(3)}
    assert len(elsewhere) == 3
    assert elsewhere.isdisjoint(at_aes)


async def test_mail_of_low_priority_leaves_the_reserve_alone(
    ring: KeyRing, pair: tuple[FakeKME, FakeKME], time: FakeTime
) -> None:
    pair[1].misbehave("enc_keys", "http", times=None, code=503)
    pair[1].link.bits = 0
    pair[0].link.bits = 12 * 256
    for _ in range(2):
        await ring.maintain(ask=True)
        await ring.take("bob", low_priority=True)
    await ring.maintain(ask=True)
    with pytest.raises(KMEExhausted):
        await ring.take("bob", low_priority=True)
    with pytest.raises(KMEExhausted):
        await ring.take_pad("bob", 32, low_priority=True)
    time.now += 10
    await ring.take("bob")


@asynccontextmanager
async def simulated(certificates: Certificates, _: Path) -> AsyncIterator[KMEClient]:
    """60 keys at a simulated KME."""
    async with FakeKME(certificates) as kme:
        kme.link.bits = 60 * 256
        yield kme.client(name="kme", retry_attempts=0, **PATIENT)


@asynccontextmanager
async def development(_: Certificates, directory: Path) -> AsyncIterator[KMEClient]:
    """The same at the development KMEs."""
    link = LinkSettings(key_rate=1e-6, stored_key_limit=60)
    async with DevelopmentKMEs(state_dir=directory / "kme", host="127.0.0.1", ports=(0, 0), link=link) as kmes:
        site = make_site(
            directory / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=TCPAddress("::1", 1),
        )  # fmt: skip
        yield km_client("kme", load_config(site.config_file).kmes["kme"])


KEPT = {"kme": SupplyLimits(reserve=20)}


@pytest.mark.parametrize("kme", [simulated, development])
@pytest.mark.parametrize("prefetch", [Prefetch(0, 0), Prefetch(2, 8)])
@pytest.mark.parametrize("together", [False, True])
async def test_no_number_of_low_priority_mails_touches_the_reserve(
    certificates: Certificates, tmp_path: Path, kme: Any, prefetch: Prefetch, together: bool
) -> None:
    """Nobody asks the KME for its status in between: what the relay itself draws counts at once."""
    async with kme(certificates, tmp_path) as client:
        peers = {"bob": PeerKeys("1", ("one",))}
        ring = KeyRing("2", {"one": KMEGroup("one", [client], prefetch)}, peers, limits=KEPT)

        async def had(number: int, *, low_priority: bool) -> int:
            takes = [ring.take("bob", low_priority=low_priority) for _ in range(number)]
            if together:
                got = await asyncio.gather(*takes, return_exceptions=True)
                return sum(isinstance(each, SealingKey) for each in got)
            count = 0
            for take in takes:
                with suppress(KeyUnavailable):
                    await take
                    count += 1
            return count

        low = await had(70, low_priority=True)
        assert low <= 40
        assert low + await had(20, low_priority=False) == low + 20
        if not prefetch.high:
            assert low == 40
        await ring.close()


@pytest.mark.parametrize("known", [True, False])
async def test_each_kme_keeps_its_reserve_whatever_another_one_of_its_group_may_have(
    pair: tuple[FakeKME, FakeKME], known: bool
) -> None:
    """One of two cannot be asked for keys any more; what it said last does not count for the other."""
    for kme in pair:
        kme.link.bits = 60 * 256
    clients = [
        kme.client(name=name, retry_attempts=0, **PATIENT) for kme, name in zip(pair, ("away", "kme"), strict=True)
    ]
    limits = KEPT | {"away": KEPT["kme"]}
    ring = KeyRing(
        "2", {"one": KMEGroup("one", clients, Prefetch(0, 0))}, {"bob": PeerKeys("1", ("one",))}, limits=limits
    )
    if known:
        await ring.take("bob", low_priority=True)
    pair[0].misbehave("enc_keys", "http", times=None, code=500)
    pair[0].misbehave("status", "http", times=None, code=500)
    had = 0
    for _ in range(70):
        with suppress(KeyUnavailable):
            await ring.take("bob", low_priority=True)
            had += 1
    assert had == 40
    with pytest.raises(KeyUnavailable):
        await ring.can_supply("bob", 0, low_priority=True)
    assert await ring.can_supply("bob", 0)
    for _ in range(20):
        await ring.take("bob")
    await ring.close()


def _counted_by(counted: CountedTogether, _kme: str, _sae: str) -> CountedTogether:
    return counted


async def test_no_number_of_low_priority_mails_at_two_workers_touches_the_reserve(certificates: Certificates) -> None:
    """Neither asks for the status again, and what the other one draws counts at once."""
    memory = shared_memory()
    async with FakeKME(certificates) as kme, AsyncExitStack() as stack:
        kme.link.bits = 60 * 256
        rings = []
        for worker_id in (1, 2):
            client = kme.client(name="kme", retry_attempts=0, **PATIENT)
            ring = KeyRing(
                "2", {"one": KMEGroup("one", [client], Prefetch(0, 0))}, {"bob": PeerKeys("1", ("one",))}, limits=KEPT
            )
            stack.push_async_callback(ring.close)
            counted = CountedTogether(Neighbours(memory, worker_id), 0)
            ring.share(partial(_counted_by, counted), first=worker_id == 1)
            rings.append(ring)
        had = 0
        for number in range(80):
            with suppress(KeyUnavailable):
                await rings[number % 2].take("bob", low_priority=True)
                had += 1
    os.close(memory)
    assert had == 40


async def test_the_report_says_how_long_the_keys_will_last(
    ring: KeyRing, pair: tuple[FakeKME, FakeKME], time: FakeTime
) -> None:
    pair[0].link.bits = 1000 * 256
    await ring.report()
    for _ in range(100):
        time.now += 1
        await ring.take("bob")
    await ring.take_pad("bob", 640)
    time.now += 10
    report = await ring.report()
    row = next(row for row in report.pools if (row.kme, row.peer) == ("kme-one", "bob"))
    assert row.stored_keys == 1000 - 100 - 21
    assert row.use_bits_per_s == pytest.approx((100 * 256 + 672 * 8) / 110, rel=0.2)
    assert row.refill_bits_per_s == pytest.approx(0)
    assert row.empty_in_s == pytest.approx(879 * 256 / row.use_bits_per_s)
    assert not row.alarm
    shares = {level.level: level.share for level in report.levels}
    assert shares["aes"] > shares["otp"] > 0
    assert json.loads(json.dumps(report.as_json()))["levels"][0]["peer"] == "bob"


async def test_the_alarm_is_raised_when_the_keys_will_soon_be_gone(
    ring: KeyRing, pair: tuple[FakeKME, FakeKME], time: FakeTime
) -> None:
    pair[0].link.bits = 60 * 256
    for _ in range(40):
        time.now += 1
        await ring.take("bob")
    report = await ring.report()
    assert [row.alarm for row in report.pools if row.kme == "kme-one"] == [True]


async def test_what_a_kme_said_before_it_stopped_to_answer_is_unknown(
    ring: KeyRing, pair: tuple[FakeKME, FakeKME], time: FakeTime
) -> None:
    pair[0].link.bits = 10_000 * 256
    [row] = [each for each in (await ring.report()).pools if (each.kme, each.peer) == ("kme-one", "bob")]
    assert row.stored_keys == 10_000
    pair[0].misbehave("status", "http", times=None, code=500)
    [row] = [each for each in (await ring.report()).pools if (each.kme, each.peer) == ("kme-one", "bob")]
    assert (row.stored_keys, row.empty_in_s) == (None, None)


async def test_what_a_kme_said_too_long_ago_is_unknown_and_says_how_old_it_is(
    ring: KeyRing, pair: tuple[FakeKME, FakeKME], time: FakeTime, board: Board
) -> None:
    pair[0].link.bits = 10_000 * 256
    await ring.report()
    pair[0].misbehave("status", "http", times=None, code=500)
    time.now += STATUS_MAX_AGE_S + 1
    row = next(row for row in (await ring.report(ask=False)).pools if (row.kme, row.peer) == ("kme-one", "bob"))
    assert (row.stored_keys, row.status_age_s, row.empty_in_s) == (None, STATUS_MAX_AGE_S + 1, None)
    show(ring, board)
    show_forecasts(ring, board, await board.totals())
    assert counted(board, metrics.STATUS_AGE, "kme-one", "bob") == STATUS_MAX_AGE_S + 1
    assert counted(board, metrics.KEYS_STORED, "kme-one", "bob") is None
    assert counted(board, metrics.KEYS_EMPTY, "kme-one", "bob") is None


async def test_a_burst_after_a_start_is_no_reason_to_say_that_a_full_kme_runs_dry(
    ring: KeyRing, pair: tuple[FakeKME, FakeKME], time: FakeTime
) -> None:
    pair[0].link.bits = 1000 * 256
    for _ in range(200):
        await ring.take("bob")
    time.now += 15
    report = await ring.report()
    row = next(row for row in report.pools if (row.kme, row.peer) == ("kme-one", "bob"))
    assert (row.stored_keys, row.alarm) == (800, False)


async def test_whether_a_pad_can_be_had_is_asked_of_all_groups(ring: KeyRing, pair: tuple[FakeKME, FakeKME]) -> None:
    pair[0].link.bits = 0
    assert await ring.can_supply("bob", 1000)
    pair[1].link.bits = 0
    with pytest.raises(KeyUnavailable):
        await ring.can_supply("bob", 1000)


async def test_the_board_agrees_with_the_accounts(ring: KeyRing, pair: tuple[FakeKME, FakeKME], board: Board) -> None:
    pair[0].misbehave("enc_keys", "lose_reply")
    await ring.take("bob")
    await ring.take("bob")
    [(key_ID, _)] = pair[0].drawn(1)
    await ring.fetch([KeyReference(key_ID, "sae-bob", "sae-alice", "one")])
    await ring.fetch([KeyReference("unknown", "sae-bob", "sae-alice", "one")])
    show(ring, board)
    for number, metric, *labels in (
        (1, metrics.KEYS, "kme-one", "bob", "issued"),
        (2, metrics.KEYS, "kme-two", "bob", "used"),
        (1, metrics.KEYS_BURNT, "kme-one", "no answer"),
        (512, metrics.KEY_BITS_USED, "bob", "aes"),
        (1, metrics.KEYS_RECEIVED, "one", "fetched"),
        (1, metrics.KEYS_RECEIVED, "one", "not_found"),
        (1, metrics.KME_REQUESTS, "kme-one", "enc_keys", "unreachable"),
        (0, metrics.KME_BREAKER, "kme-one"),
        (2, metrics.KME_SECONDS, "kme-two", "enc_keys"),
        (2, metrics.KEY_WAIT, "two", "key"),
    ):
        assert counted(board, metric, *labels) == number, (metric.name, labels)


async def test_a_running_ring_warms_its_pools_and_a_closed_one_leaves_nothing(kme: FakeKME, time: FakeTime) -> None:
    before = asyncio.all_tasks()
    group = KMEGroup("g", [kme.client(timing=time.timing)], Prefetch(4, 16, 86_400), timing=time.timing)
    async with KeyRing("sae-alice", {"g": group}, {"bob": PeerKeys("bob", ("g",))}, timing=time.timing):
        while group.pools[0].ready("bob", 256) < 4:
            await kme.next_request()
    left = {task for task in asyncio.all_tasks() - before if not is_the_servers(task)}
    assert left == set()
    totals = group.pools[0].client.accounts.totals()
    assert (totals["issued"], totals["burnt"], totals["in_pool"]) == (4, 4, 0)
    while kme.open_connections:
        await asyncio.sleep(0)


async def test_for_a_peer_that_is_new_keys_are_drawn_and_for_one_that_is_gone_no_more(
    kme: FakeKME, time: FakeTime
) -> None:
    group = KMEGroup("g", [kme.client(timing=time.timing)], Prefetch(4, 16, 100), timing=time.timing)
    async with KeyRing("sae-alice", {"g": group}, {"bob": PeerKeys("bob", ("g",))}, timing=time.timing) as ring:
        await ring.take("bob")
        ring.set_peers({"carol": PeerKeys("carol", ("g",))})
        while group.pools[0].ready("carol", 256) < 4:
            await kme.next_request()
        with pytest.raises(KMEMisconfigured):
            await ring.take("bob")
        assert (await ring.take("carol")).reference.slave_sae == "carol"
        time.now += 101
        await ring.maintain(ask=False)
        while group.pools[0].ready("carol", 256) < 4:
            await kme.next_request()
        assert group.pools[0].ready("bob", 256) == 0
        assert {row.peer for row in ring.pool_rows()} == {"carol"}


async def test_a_key_in_use_for_several_messages_is_forgotten_when_its_peer_gets_another_sae(
    kme: FakeKME, time: FakeTime
) -> None:
    rotation = Rotation(max_messages=10)
    group = KMEGroup("g", [kme.client(timing=time.timing)], Prefetch(0, 0), timing=time.timing)
    peers = {"bob": PeerKeys("bob", ("g",), rotation)}
    async with KeyRing("sae-alice", {"g": group}, peers, timing=time.timing) as ring:
        first = await ring.take("bob")
        ring.set_peers(peers)
        assert await ring.take("bob") == first
        ring.set_peers({"bob": PeerKeys("other", ("g",), rotation)})
        assert (await ring.take("bob")).reference.slave_sae == "other"


async def test_a_fault_that_nobody_foresaw_does_not_end_the_watch_over_the_keys(
    ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    tended = asyncio.Semaphore(0)

    async def faulty(**_: bool) -> None:
        tended.release()
        raise RuntimeError("nobody foresaw it")

    monkeypatch.setattr(ring, "maintain", faulty)
    ring.start()
    async with asyncio.timeout(10):
        for _ in range(3):
            await tended.acquire()


async def test_what_a_kme_refuses_for_one_peer_is_the_trouble_of_no_other(
    ring: KeyRing, pair: tuple[FakeKME, FakeKME]
) -> None:
    pair[1].decide = lambda request: (
        Misbehaviour("http", 401) if (request.call, request.other) == ("enc_keys", "sae-carol") else None
    )
    with pytest.raises(KMEMisconfigured):
        await ring.take("carol")
    rows = {row.peer: row.trouble for row in (await ring.report()).pools if row.kme == "kme-two"}
    assert "HTTP 401" in rows["carol"]
    assert rows["bob"] == ""
