"""The crash test in short: two sites with Postfix under random faults, and every promise checked afterwards.
Standard: as tests/system/crash; the long forms are `python -m tests.system.crash` and `python -m tests.system.crash.two_relays`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.system.crash import two_relays
from tests.system.crash.faults import GENTLE
from tests.system.crash.run import run
from tests.testlib.databases import PostgreSQLServer
from tests.testlib.identities import Identities
from tests.testlib.long import sized
from tests.testlib.postfix import requires_postfix


def told(what: str) -> None:
    """How far a run has come, for one that does not end."""
    sys.stdout.write(f"{what}\n")


@requires_postfix
@pytest.mark.timeout(480)  # what settles slowly may take two minutes twice
async def test_whatever_is_killed_frozen_cut_or_locked_each_recipient_gets_each_message_and_nobody_else_does(
    tmp_path: Path, identities: Identities
) -> None:
    report = await run(
        tmp_path,
        identities,
        messages=sized(24, 2000),
        seed=20261125,
        largest=sized(300_000, 5_000_000),
        pause=0.4,
        progress=told,
    )
    assert report.faults == []
    assert report.events.total() >= 6
    assert report.keys_used > 24
    assert report.deliveries > 50


@requires_postfix
@pytest.mark.timeout(480)  # what settles slowly may take two minutes twice
async def test_what_befalls_single_workers_of_a_relay_loses_nothing_either(
    tmp_path: Path, identities: Identities
) -> None:
    report = await run(
        tmp_path,
        identities,
        messages=sized(18, 500),
        seed=7,
        largest=200_000,
        pause=0.5,
        workers=2,
        only=("worker", "killed"),
        progress=told,
    )
    assert report.faults == []
    assert report.events.total() >= 3
    assert any('"worker_ended"' in log.read_text() for log in tmp_path.rglob("relay.log"))
    assert report.deliveries > 35


@requires_postfix
@pytest.mark.timeout(480)  # what settles slowly may take two minutes twice
async def test_where_no_answer_gets_lost_nothing_comes_twice_and_no_key_is_burnt(
    tmp_path: Path, identities: Identities
) -> None:
    report = await run(
        tmp_path, identities, messages=sized(18, 500), seed=3, largest=200_000, pause=0.4, only=GENTLE, progress=told
    )
    assert report.faults == []
    assert report.events.total() >= 6
    assert report.repeated == 0
    # But for those in replies that a stall has taken, as happens where the machine is so slow that it ends connections.
    told_by = [
        line for log in tmp_path.rglob("relay.log") for line in log.read_text().splitlines() if '"warning"' in line
    ]
    assert report.keys_burnt == 0 or report.lost_on_the_wire, "\n".join(told_by[-60:])
    assert report.keys_unread == report.keys_issued - report.keys_used


@pytest.mark.usefixtures("postgresql")
@pytest.mark.timeout(480)  # what settles slowly may take two minutes twice
async def test_two_relays_on_one_database_lose_and_double_nothing_whatever_befalls_them(
    tmp_path: Path, postgresql_server: PostgreSQLServer
) -> None:
    report = await two_relays.run(tmp_path, postgresql_server, seconds=sized(7, 600), seed=5)
    assert report.faults == []
    assert report.messages > 5
    assert sum(report.hits.values()) >= 3
