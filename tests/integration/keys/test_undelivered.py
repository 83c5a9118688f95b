"""A KME that drops what was not fetched yet when more is asked for: found out at the start, and no mail is lost by it.
Standard: ETSI GS QKD 014 V1.1.1, 5.3; the development KMEs misbehave so on command.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from relay.counting import metrics
from relay.counting.board import Board
from relay.errors import KMEExhausted
from relay.keys.etsi014 import OptimizedKMClient
from relay.keys.group import KMEGroup, Prefetch
from relay.keys.report import show
from relay.keys.ring import KeyRing, PeerKeys
from relay.keys.types import SealingKey
from relay.kme import DevelopmentKMEs, LinkSettings
from relay.process import app, assembly
from relay.store.kme_memory import Trials
from relay.store.secret import SiteSecret
from relay.store.store import open_store
from tests.integration.store.conftest import Clock
from tests.testlib import mails
from tests.testlib.counted import burnt_by_cause, counted
from tests.testlib.fake_kme import Certificates, FakeKME, FakeTime
from tests.testlib.next_door import count_undelivered
from tests.testlib.pools import accounts_agree, settled
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site
from tests.testlib.submit import submit

LINK = LinkSettings(key_rate=0, stored_key_limit=1000, drops_undelivered=True)


@asynccontextmanager
async def _kmes(tmp_path: Path, **change: Any) -> AsyncIterator[DevelopmentKMEs]:
    async with DevelopmentKMEs(
        state_dir=tmp_path, host="127.0.0.1", ports=(0, 0), link=replace(LINK, **change)
    ) as kmes:
        yield kmes


def _client(kmes: DevelopmentKMEs, side: int, **options: Any) -> OptimizedKMClient:
    state, sae = kmes.state_dir, ("sae-2", "sae-1")[side]
    files: dict[str, Any] = {"ca": state / "ca.pem", "certificate": state / f"{sae}.pem", "key": state / f"{sae}.key"}
    return OptimizedKMClient(kmes.urls[side], name=f"km{side + 1}", **files, **options)


def _ring(
    client: OptimizedKMClient, time: FakeTime, prefetch: Prefetch, trials: Trials | None = None, **options: Any
) -> KeyRing:
    unknown = {"one_batch": {client.name: None}}
    group = KMEGroup("g", [client], prefetch, timing=time.timing, **(unknown | options))
    # Tending is the tests' own here: simulated time would make it run without an end.
    ring = KeyRing("2", {"g": group}, {"bob": PeerKeys("1", ("g",))}, trials=trials, timing=time.timing)
    group.pools[0].undelivered.serve("2")
    return ring


async def _fetched(kmes: DevelopmentKMEs, key_IDs: list[str]) -> int:
    """How many of these the peer can still have."""
    async with _client(kmes, 1) as bob:
        return sum([len(await bob.request_dec_keys(2, [key_ID])) for key_ID in key_IDs])


async def test_the_development_kme_drops_them_on_command(tmp_path: Path) -> None:
    async with _kmes(tmp_path) as kmes, _client(kmes, 0) as alice:
        [first] = await alice.request_enc_keys(1)
        [second] = await alice.request_enc_keys(1)
        assert await _fetched(kmes, [second.key_ID]) == 1
        with pytest.raises(Exception, match="not found"):
            await _fetched(kmes, [first.key_ID])


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, "dropped"),
        ({"drops_undelivered": False}, "kept"),
        ({"max_sae_id_count": 0}, "untold"),
        ({"lag": 300.0}, "untold"),
    ],
)
async def test_a_kme_is_tried_with_few_keys(tmp_path: Path, change: dict[str, Any], found: str) -> None:
    async with _kmes(tmp_path, **change) as kmes, _client(kmes, 0) as alice:
        assert await alice.keeps_undelivered("1", "2") == found
        assert accounts_of(alice) == {"issued": 3 if "max_sae_id_count" in change else 2}


@pytest.mark.parametrize(("drops", "found"), [(True, "counted"), (False, "kept")])
async def test_a_kme_that_counts_what_nobody_has_fetched_shows_by_that_what_it_does(
    tmp_path: Path, drops: bool, found: str
) -> None:
    async with _kmes(tmp_path) as kmes, _client(kmes, 0) as alice:
        count_undelivered(kmes, drops=drops)
        assert await alice.keeps_undelivered("1", "2") == found
        assert accounts_of(alice) == {"issued": 5}


async def test_of_a_kme_that_counts_them_the_next_batch_is_drawn_once_the_peer_has_fetched_the_last_one(
    tmp_path: Path, time: FakeTime
) -> None:
    async with _kmes(tmp_path) as kmes:
        count_undelivered(kmes, drops=True)
        ring = _ring(_client(kmes, 0, timing=time.timing), time, Prefetch(4, 16, 200))
        began = time.now
        for size in (256, 8000, 256, 8000, 256):
            if size == 256:
                under_way = [(await ring.take("bob", level="otp")).key.key_ID]
            else:
                with await ring.take_pad("bob", size) as pad:
                    under_way = [key.reference.key_ID for key in pad.keys]
            with pytest.raises(KMEExhausted, match="one batch at a time"):
                await ring.take_pad("bob", 640)
            assert await _fetched(kmes, under_way) == len(under_way)
        assert time.now - began < 60, "each of five gave up after ten seconds, and the time of a batch is a minute"
        assert accounts_agree(ring.groups["g"])
        await ring.close()


async def test_where_nothing_can_be_found_out_one_small_batch_is_drawn_at_a_time(
    certificates: Certificates, time: FakeTime
) -> None:
    async with FakeKME(certificates, limits={"max_key_per_request": 10, "max_key_size": 512}) as kme:
        ring = _ring(kme.client(timing=time.timing), time, Prefetch(4, 16, 200))
        ring.groups["g"].warm("1")
        await settled(ring.groups["g"])
        assert kme.got("enc_keys") == [], "nothing is drawn before somebody needs a key"
        times = []
        for _ in range(9):
            await ring.take("bob", level="otp")
            times.append(time.now)
        pauses = [round(later - earlier) for earlier, later in pairwise(times)]
        assert set(pauses) == {0, 5}
        assert pauses.count(5) <= 2, "a batch is larger the more are used"
        issued = len(kme.got("enc_keys"))
        with await ring.take_pad("bob", 48 * 25) as pad:
            assert pad.hides >= 48 * 25
        assert time.now - times[-1] == pytest.approx(5)
        assert len(kme.got("enc_keys")) - issued == 3, "a pad larger than a batch is drawn at once"
        await ring.close()


def accounts_of(client: OptimizedKMClient) -> dict[str, int]:
    totals = client.accounts.totals()
    assert totals["issued"] == totals["burnt"]
    return {"issued": totals["issued"]}


async def test_every_key_that_was_used_can_still_be_fetched(tmp_path: Path, time: FakeTime) -> None:
    """70 messages one after the other: held where the next batch would cost keys in use, and none is lost."""
    async with _kmes(tmp_path) as kmes:
        ring = _ring(_client(kmes, 0, timing=time.timing), time, Prefetch(4, 16, 200))
        [pool] = ring.groups["g"].pools
        under_way: list[str] = []
        number = waited = 0
        while number < 70:
            try:
                under_way.append((await ring.take("bob", level="otp")).key.key_ID)
                number += 1
            except KMEExhausted:
                waited += 1
                assert await _fetched(kmes, under_way) == len(under_way)
                under_way.clear()
                time.now += 5
                assert time.now < 5000
        assert await _fetched(kmes, under_way) == len(under_way)
        assert pool.undelivered.dropped
        assert waited > 0
        assert accounts_agree(ring.groups["g"])
        await ring.close()


@pytest.mark.parametrize("counts", [True, False])
async def test_a_key_and_a_pad_that_are_wanted_at_once_do_not_drop_each_other(
    tmp_path: Path, time: FakeTime, counts: bool
) -> None:
    async with _kmes(tmp_path) as kmes:
        if counts:
            count_undelivered(kmes, drops=True)
        ring = _ring(_client(kmes, 0, timing=time.timing), time, Prefetch(4, 16, 200))
        assert await _fetched(kmes, [(await ring.take("bob", level="otp")).key.key_ID]) == 1
        time.now += 120
        key, pad = await asyncio.gather(ring.take("bob"), ring.take_pad("bob", 640), return_exceptions=True)
        assert isinstance(key, SealingKey)
        assert isinstance(pad, KMEExhausted)
        assert await _fetched(kmes, [key.key.key_ID]) == 1
        await ring.close()


async def test_a_relay_that_starts_finds_it_out_and_says_so(tmp_path: Path, time: FakeTime) -> None:
    async with _kmes(tmp_path) as kmes:
        ring = _ring(_client(kmes, 0, timing=time.timing), time, Prefetch(4, 16, 200))
        board = Board()
        ring.groups["g"].warm("1")
        await ring.take("bob", level="otp")
        [row] = ring.pool_rows()
        assert "one_batch_at_a_time = 60" in row.trouble
        show(ring, board)
        assert counted(board, metrics.KME_DROPS, "km1") == 1
        issued = kmes.link.issued["KM1"]
        for _ in range(7):
            await ring.take("bob", level="otp")
        await settled(ring.groups["g"])
        with pytest.raises(KMEExhausted, match="one batch at a time"):
            await ring.take("bob", level="otp")
        assert kmes.link.issued["KM1"] == issued
        time.now += 70
        await ring.take("bob", level="otp")
        await ring.close()


async def test_a_relay_that_starts_again_does_not_pay_for_the_trial_once_more(tmp_path: Path, wire: Sink) -> None:
    async with _kmes(tmp_path / "kme", drops_undelivered=False) as kmes:
        alice = make_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
            kme_settings="prefetch = false",
        )  # fmt: skip
        cost = []
        for per_request in (LINK.max_key_per_request, LINK.max_key_per_request, 7):
            kmes.link.settings = replace(kmes.link.settings, max_key_per_request=per_request)
            stored = kmes.link.stored_key_count
            async with app.running(alice.config) as addresses:
                assert (await submit(addresses["outgoing"], mails.plain(f"Number {per_request}"))).code == 250
            cost.append(stored - kmes.link.stored_key_count)
    assert cost == [3, 1, 3], "a key for the mail, and two where it is the first start or the KME is another"


async def test_what_is_remembered_of_a_kme_that_drops_keys_holds_for_30_days_and_spares_the_run_before(
    tmp_path: Path, time: FakeTime
) -> None:
    clock = Clock()
    opening = open_store(tmp_path / "relay.db", SiteSecret(bytes(32)), clock=clock)
    async with _kmes(tmp_path / "kme") as kmes, await opening as store:
        for days, tried in ((0, True), (29, False), (31, True)):
            clock.now += days * 86400
            issued = kmes.link.issued["KM1"]
            ring = _ring(_client(kmes, 0, timing=time.timing), time, Prefetch(0, 0), trials=store.trials)
            if not tried:
                with pytest.raises(KMEExhausted, match="in 60 s"):
                    await ring.take("bob", level="otp")
                time.now += 61
            await ring.take("bob", level="otp")
            assert kmes.link.issued["KM1"] - issued == (9 if tried else 1), "a trial is for two slaves, and made twice"
            assert ring.groups["g"].pools[0].undelivered.dropped
            await ring.close()


async def test_processes_that_begin_at_once_do_not_spoil_each_others_trial(tmp_path: Path, time: FakeTime) -> None:
    """The keys that one draws would drop those of another one's trial: nobody could tell then, for 30 days."""
    opening = open_store(tmp_path / "relay.db", SiteSecret(bytes(32)))
    async with _kmes(tmp_path / "kme") as kmes, await opening as store:
        clients = [_client(kmes, 0, timing=time.timing) for _ in range(3)]
        rings = [_ring(client, time, Prefetch(0, 0), trials=store.trials) for client in clients]
        pools = [ring.groups["g"].pools[0] for ring in rings]
        status = await clients[0].check_key_status(1)
        await asyncio.gather(*(pool.undelivered.find_out(pool.client, "1", status, may_try=True) for pool in pools))
        assert [pool.undelivered.dropped for pool in pools] == [True] * 3
        assert kmes.link.issued["KM1"] == 8, "a trial is for two slaves, and made twice"
        for ring in rings:
            await ring.close()


async def test_one_answer_that_was_spoilt_does_not_make_a_kme_one_that_drops_keys(kme: FakeKME, time: FakeTime) -> None:
    kme.limits["max_SAE_ID_count"] = 2
    # The second trial key comes, and then the first seems to be unknown.
    kme.misbehave("dec_keys", "late")
    kme.misbehave("dec_keys", "not_json")
    ring = _ring(kme.client(timing=time.timing), time, Prefetch(0, 4, 200))
    await ring.take("bob", level="otp")
    assert not ring.groups["g"].pools[0].undelivered.dropped
    await ring.close()


async def test_a_pad_beyond_one_batch_is_not_put_together_from_two(certificates: Certificates, time: FakeTime) -> None:
    async with FakeKME(certificates, limits={"max_key_per_request": 10, "max_key_size": 512}) as kme:
        group = KMEGroup(
            "g", [kme.client(timing=time.timing)], Prefetch(0, 0), timing=time.timing, one_batch={"kme-a": 30.0}
        )
        assert (await group.take_pad("bob", 48 * 8)).hides >= 48 * 8
        time.now += 31
        with pytest.raises(KMEExhausted, match="one batch"):
            await group.take_pad("bob", 48 * 12)
        assert len(kme.got("enc_keys")) == 2
        await group.take("bob")
        assert burnt_by_cause(group.pools[0].client.accounts) == {"overtaken": 10}
        assert accounts_agree(group)
        await group.close()


async def test_a_pad_for_which_a_slow_link_has_too_few_keys_yet_leaves_them_there_and_comes_later(
    certificates: Certificates, time: FakeTime
) -> None:
    async with FakeKME(certificates, limits={"max_key_size": 512}) as kme:
        ring = _ring(kme.client(timing=time.timing), time, Prefetch(0, 0))
        await ring.take("bob", level="otp")
        kme.link.bits, kme.gives_what_is_left = 0, False
        for _ in range(4):
            time.now += 6
            kme.link.bits += 2 * 512
            pads = await asyncio.gather(*(ring.take_pad("bob", 48 * 7) for _ in range(3)), return_exceptions=True)
        assert [isinstance(pad, KMEExhausted) for pad in pads] == [False, True, True]
        assert burnt_by_cause(ring.groups["g"].pools[0].client.accounts) == {"trial": 3}
        assert accounts_agree(ring.groups["g"])
        await ring.close()


async def test_a_kme_that_is_known_to_drop_is_not_tried_and_the_keys_of_the_run_before_get_their_time(
    kme: FakeKME, time: FakeTime
) -> None:
    kme.limits["max_SAE_ID_count"] = 2
    ring = _ring(kme.client(timing=time.timing), time, Prefetch(4, 16, 200), one_batch={"kme-a": 30.0})
    with pytest.raises(KMEExhausted, match="in 30 s"):
        await ring.take("bob", level="otp")
    assert kme.got("enc_keys") == []
    time.now += 31
    ring.groups["g"].warm("1")
    await settled(ring.groups["g"])
    assert kme.got("enc_keys") == []
    await ring.take("bob", level="otp")
    assert [request.content["number"] for request in kme.got("enc_keys")] == [8]
    assert ring.groups["g"].pools[0].trouble == ""
    await ring.close()


async def test_what_alice_was_told_250_for_can_be_opened_when_it_has_waited_in_a_queue(
    tmp_path: Path, wire: Sink, sink: Sink
) -> None:
    async with _kmes(tmp_path / "kme") as kmes:
        alice = make_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
            kme_settings="cache_high = 8",
        )  # fmt: skip
        async with app.running(alice.config) as addresses:
            replies = [await submit(addresses["outgoing"], mails.plain(f"Number {n}")) for n in range(9)]
        assert {reply.code for reply in replies} == {250, 451}
        async with assembly.parts(alice.config, prefetch=False) as parts:
            assert await parts.store.received.counts() == {}, "a trial leaves nothing behind"
        bob = make_site(
            tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address,
            kme_settings="lag_patience = 0",
        )  # fmt: skip
        async with app.running(bob.config) as addresses:
            opened = [await submit(addresses["incoming"], got.message, sender=got.sender) for got in wire.got]
    assert [reply.code for reply in opened] == [250] * len(wire.got)
    assert len(sink.got) == len(wire.got) == [reply.code for reply in replies].count(250) >= 4
