"""Each fault raises its alarm, and its repair ends it: the drill with all times shortened.
Standard: an alarm begins once and ends once, and nothing stands when all is repaired.
"""

from __future__ import annotations

from pathlib import Path

from structlog.testing import capture_logs

from relay.counting.alarms import ALARMS
from tests.system.drill import FAULTS, drill, scene_in, shortened


async def test_each_fault_raises_its_alarm_within_a_minute_and_its_repair_ends_it(tmp_path: Path) -> None:
    with shortened(), capture_logs() as logs:
        async with scene_in(tmp_path, canary_s=1.0, canary_late_s=2.0) as scene:
            rows = await drill(scene, ends_within=20.0)
            assert {each.fault for each in rows} == {each.name for each in FAULTS}
            # A machine that is loaded raises these by itself, too, and by other faults a canary is late and keys are gone as well.
            once = [
                each for each in FAULTS if each.alarm not in ("event_loop_late", "kme_away", "keys_gone", "canary_late")
            ]
            began = [each for each in logs if each["event"] == "alarm_begins"]
            for fault in once:
                of_it = [each for each in began if each["alarm"] == fault.alarm]
                ended = [each for each in logs if each["event"] == "alarm_ends" and each["alarm"] == fault.alarm]
                assert (len(of_it), len(ended)) == (1, 1), (fault.name, of_it, ended)
                assert of_it[0]["what_to_do"] == ALARMS[fault.alarm].what_to_do
