"""What a relay does beside the mail goes on whatever fails, and does not end without a word.
Standard: keys whose time is over are destroyed; a log line tells of everything that stopped.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from structlog.testing import LogCapture

from relay.kme import DevelopmentKMEs
from relay.policy.reload import PoliciesInForce
from relay.process import app, upkeep
from relay.quarantine.triage import Triage
from relay.runtime import aio
from relay.store.received import ReceivedKeys
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site


@pytest.fixture
def site(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Site:
    return make_site(tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address)


async def test_keys_are_destroyed_also_after_something_unforeseen_has_failed(
    site: Site, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    again = asyncio.Event()

    async def failing(self: ReceivedKeys, now: float) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            again.set()
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(upkeep, "SWEEP_S", 0.01)
    monkeypatch.setattr(ReceivedKeys, "destroy_expired", failing)
    async with app.running(site.config), asyncio.timeout(20):
        await again.wait()
    assert {entry["cause"] for entry in log.entries if entry["event"] == "sweep_failed"} == {"RuntimeError: unforeseen"}


async def test_policies_that_end_are_told_of_again_after_something_unforeseen(
    site: Site, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    again = threading.Event()

    def failing(_: object) -> list[object]:
        nonlocal calls
        calls += 1
        if calls == 2:
            again.set()
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(upkeep, "DAY_S", 0.01)
    monkeypatch.setattr(upkeep, "endings", failing)
    async with app.running(site.config):
        assert await asyncio.to_thread(again.wait, 20)
    told = {entry["cause"] for entry in log.entries if entry["event"] == "policy_ends_not_told"}
    assert told == {"RuntimeError: unforeseen"}


async def test_keys_are_destroyed_whatever_is_wrong_with_the_quarantine(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    destroyed = asyncio.Event()

    async def failing(self: Triage) -> None:
        if running:
            raise RuntimeError("unforeseen")

    async def destroying(self: ReceivedKeys, now: float) -> int:
        destroyed.set()
        return 0

    running = False
    monkeypatch.setattr(upkeep, "SWEEP_S", 0.01)
    monkeypatch.setattr(Triage, "refresh", failing)
    monkeypatch.setattr(ReceivedKeys, "destroy_expired", destroying)
    async with app.running(site.config):
        running = True
        destroyed.clear()
        async with asyncio.timeout(5):
            await destroyed.wait()


async def test_work_that_fails_is_in_the_log_and_begins_anew(
    site: Site, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    again = asyncio.Event()

    async def failing_first(self: PoliciesInForce, first: object) -> None:
        begun.append(len(begun))
        if len(begun) < 3:
            raise RuntimeError("unforeseen")
        again.set()

    monkeypatch.setattr(aio, "AGAIN_S", 0.0)
    monkeypatch.setattr(PoliciesInForce, "watch", failing_first)
    async with app.running(site.config), asyncio.timeout(20):
        await again.wait()
    failed = [entry for entry in log.entries if entry["event"] == "background_work_failed"]
    assert [(entry["work"], entry["cause"]) for entry in failed] == [("watch", "RuntimeError('unforeseen')")] * 2
