"""The soak in short: KMEs fail in each way for a moment, and every mail arrives whose keys they did not destroy.
Standard: as tests/system/crash/soak.py; the long form is `python -m tests.system.crash.soak --seconds 1800`.
"""

from __future__ import annotations

from pathlib import Path

from tests.system.crash.episodes import KINDS
from tests.system.crash.soak import soak
from tests.testlib.long import sized

QUICK = """\
retry_delay = 0.02
timeout = 1.5
"""


async def test_every_mail_arrives_over_kmes_that_fail_in_each_way_or_its_key_was_destroyed_there(
    tmp_path: Path,
) -> None:
    report = await soak(
        tmp_path,
        rounds=sized(1, 100),
        rate=15,
        lasting=(0.2, 0.3),
        well=(0.05, 0.1),
        failing=0,
        settings=QUICK,
        longest_pause=1,
    )
    assert report.faults == []
    assert sorted(episode.partition(" (")[0] for episode in report.episodes) == sorted(KINDS)
    assert report.arrived + report.destroyed_by_kme.total() == report.sent > 0
