"""Makes deploy/METRICS.md, the reference of every metric and every alarm, out of their definitions.
`python -m relay.counting.reference >deploy/METRICS.md`; nothing of it is loaded by a relay that serves.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator

from relay.counting.alarms import ALARMS, Alarm, Severity
from relay.counting.metric import Metric
from relay.counting.metrics import all_metrics

_INTRODUCTION = """\
# Metrics and alarms

Everything at `/metrics` of `[status]` ([SETTINGS.md](SETTINGS.md)), in the text format of Prometheus. Made from the
code, by `python -m relay.counting.reference`; edits by hand are lost.

Names with `_total` are counters, which begin anew with the relay. Histograms are marked, all others are gauges. Several
`workers` count together: counters and histograms are summed. Of a gauge the largest value counts, unless marked *sum*
or *smallest*.

Labels: `peer`, `kme` and `kme_group` are names in relay.toml; `peer` is empty if none can be named. `direction` is
outgoing or incoming. `reason` is a class of error in relay/errors.py. All other values are listed. A stranger's text
never becomes a label. A retry by the mail server counts as another attempt.

"""

_ALARMS = """
## Alarms

Each alarm is a condition in which mail leaves weaker than it could, stays, is put aside, or is not watched. The relay
looks every five seconds. The page, `check`, the notice by mail and the log give each alarm **with its cause and its
remedy**. An alarm with * makes the relay not ready (`/readyz`).

An alarm ends with its condition, or as the list says. It begins once and ends once, for all processes together, also
over a restart. If the relay cannot look, the alarm stays.

Thresholds and recipients: `[alarms]` ([SETTINGS.md](SETTINGS.md)). A critical alarm is mailed within a minute, others
at most every five minutes. A notice that cannot be mailed waits for the next mail.
[prometheus/](prometheus/README.md) has rules and a dashboard.

Relays of several hosts with one PostgreSQL report separately: one counts a mail as waiting that another has delivered,
until two hours or more after its own last attempt. After a kill, mail of the last seconds may count as waiting for two
hours.
"""

_TOGETHER = {"sum": ", sum", "min": ", smallest", "max": ""}


def markdown() -> str:
    """The whole page."""
    alarms = "".join((*_alarms("critical", "someone has to act now"), *_alarms("warning", "it can wait until morning")))
    return _INTRODUCTION + "".join(map(_metric, all_metrics().values())) + _ALARMS + alarms


def _alarms(severity: Severity, meaning: str) -> Iterator[str]:
    yield f"\n**{severity.capitalize()}**: {meaning}.\n\n"
    yield from (_alarm(each) for each in ALARMS.values() if each.severity == severity)


def _alarm(alarm: Alarm) -> str:
    about = f", each {alarm.about}" if alarm.about else ""
    ends = f" Ends: {alarm.ends}." if alarm.ends else ""
    return _item(f"`{alarm.name}`{'*' if alarm.not_ready else ''}{about}: {alarm.begins}.{ends}")


def _metric(metric: Metric) -> str:
    labels = f"{{{','.join(metric.labels)}}}" if metric.labels else ""
    kind = _TOGETHER[metric.together] if metric.kind == "gauge" else ", histogram" if metric.kind == "histogram" else ""
    return _item(f"`{metric.name}{labels}`{kind}: {metric.help}.")


def _item(text: str) -> str:
    return textwrap.fill(text, 118, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
