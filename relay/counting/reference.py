"""Makes deploy/METRICS.md, the reference of every metric and every alarm, out of their definitions.
`python -m relay.counting.reference >deploy/METRICS.md`; nothing of it is loaded by a relay that serves.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Iterator

from relay.counting.alarms import ALARMS, Alarm, Severity
from relay.counting.metric import Metric, Together
from relay.counting.metrics import all_metrics

_INTRODUCTION = """\
# Metrics and alarms

Everything at `/metrics` of `[status]` ([SETTINGS.md](SETTINGS.md)), in the text format of Prometheus. Made from the
code, by `python -m relay.counting.reference`; edits by hand are lost.

Names with `_total` are counters, which begin anew with the relay. Histograms are marked, all others are gauges. Several
`workers` count together: counters and histograms are summed; of a gauge the largest counts, except for these.

* Summed: {sum}
* The smallest counts: {min}

Labels: `peer`, `kme` and `kme_group` are names in relay.toml; `peer` is empty if none can be named. `direction` is
outgoing or incoming. `reason` is a class of error in relay/errors.py unless the table says otherwise. The table lists
all other values. A stranger's text never becomes a label. A retry by the mail server counts as another attempt.

| metric, with its labels | meaning |
|---|---|
"""

_ALARMS = """
## Alarms

All conditions in which mail leaves weaker than it could, stays, is put aside, or is not watched. The relay looks every
five seconds. The page, `check`, the notice by mail and the log give each alarm **with its cause and its remedy**. An
alarm with * makes the relay not ready (`/readyz`).

Each alarm begins once and ends once, for all processes together, also over a restart. If the relay cannot look, the
alarm stays. Without a text under *ends* the alarm ends with its condition.

Thresholds and recipients: `[alarms]` ([SETTINGS.md](SETTINGS.md)). A critical alarm is mailed within a minute, others
at most every five minutes. A notice that cannot be mailed waits for the next mail.
[prometheus/](prometheus/README.md) has rules and a dashboard.

Relays of several hosts with one PostgreSQL report separately: one counts a mail as waiting that another has delivered,
until two hours or more after its own last attempt. After a kill, mail of the last seconds may count as waiting for two
hours.
"""


def markdown() -> str:
    """The whole page."""
    metrics = all_metrics().values()
    introduction = _INTRODUCTION.format(sum=_gauges(metrics, "sum"), min=_gauges(metrics, "min"))
    alarms = "".join((*_alarms("critical", "someone has to act now"), *_alarms("warning", "it can wait until morning")))
    return introduction + "".join(map(_line, metrics)) + _ALARMS + alarms


def _gauges(metrics: Iterable[Metric], together: Together) -> str:
    names = [f"`{each.name}`" for each in metrics if each.kind == "gauge" and each.together == together]
    return textwrap.fill(", ".join(names), 116, initial_indent=" " * 22, subsequent_indent="  ").lstrip()


def _alarms(severity: Severity, meaning: str) -> Iterator[str]:
    yield f"\n**{severity.capitalize()}**: {meaning}.\n\n| alarm | begins | ends |\n|---|---|---|\n"
    yield from (_alarm(each) for each in ALARMS.values() if each.severity == severity)


def _alarm(alarm: Alarm) -> str:
    about = f", each {alarm.about}" if alarm.about else ""
    return f"| `{alarm.name}`{' *' if alarm.not_ready else ''}{about} | {alarm.begins} | {alarm.ends} |\n"


def _line(metric: Metric) -> str:
    labels = f"{{{','.join(metric.labels)}}}" if metric.labels else ""
    kind = "Histogram. " if metric.kind == "histogram" else ""
    return f"| `{metric.name}{labels}` | {kind}{metric.help} |\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
