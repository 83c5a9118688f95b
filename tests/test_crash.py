"""The crash test in short: two sites with Postfix under random faults, and every promise checked afterwards.
Standard: as tests/crash; the long form is `python -m tests.crash`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.faults import GENTLE
from tests.crash.run import run
from tests.testlib.identities import Identities
from tests.testlib.postfix import requires_postfix


@requires_postfix
@pytest.mark.timeout(240)
async def test_whatever_is_killed_frozen_cut_or_locked_each_recipient_gets_each_message_and_nobody_else_does(
    tmp_path: Path, identities: Identities
) -> None:
    report = await run(tmp_path, identities, messages=60, seed=20261125, largest=300_000, pause=0.5)
    assert report.faults == []
    assert report.events.total() >= 10
    assert report.keys_used > 60
    assert report.deliveries > 150


@requires_postfix
@pytest.mark.timeout(240)
async def test_where_no_answer_gets_lost_nothing_comes_twice_and_no_key_is_burnt(
    tmp_path: Path, identities: Identities
) -> None:
    report = await run(tmp_path, identities, messages=40, seed=3, largest=200_000, pause=0.4, only=GENTLE)
    assert report.faults == []
    assert report.events.total() >= 10
    assert report.repeated == 0
    assert report.keys_burnt == 0  # but for those in replies that a cut or a stall has taken
    assert report.keys_unread == report.keys_issued - report.keys_used
