"""Makes deploy/METRICS.md, the reference of every metric and every alarm, out of their definitions.
`python -m relay.counting.reference >deploy/METRICS.md`; nothing of it is loaded by a relay that serves.
"""

from __future__ import annotations

import sys

from relay.counting.alarms import ALARMS, Alarm
from relay.counting.metric import Metric
from relay.counting.metrics import all_metrics

_INTRODUCTION = """\
# Metrics

Everything at `/metrics` of `[status]` ([SETTINGS.md](SETTINGS.md)), in the text format of Prometheus. This page is
made from the code, by `python -m relay.counting.reference`; edits by hand are lost.

With several processes (`workers`) each number stands for all of them together: counters and histograms are sums, and
the last column says how gauges are combined. A killed process takes no count with it. A restart of the relay begins
all counters anew.

The values of all labels are bounded: `peer`, `kme` and `kme_group` are names in relay.toml (`peer` is empty if none
can be named). All others come from the lists below. Nothing from a stranger becomes a label. A retry by the mail
server is another attempt, and counts.

| name | kind | labels | meaning | of several |
|---|---|---|---|---|
"""

_ALARMS = """
## Alarms

This is the one list of conditions in which mail leaves weaker than it could, stays, is put aside, or is not watched.
The relay looks every five seconds. Each alarm begins once and ends once, for all processes together, and a restart
does not report it again. An alarm ends only when the relay has seen the end of its cause; if it cannot look, the
alarm stays. Critical: someone has to act now. Warning: it can wait until the morning.

A standing alarm is in `qumail_alarm`, on the page, and a finding of `check`. Alarms that make the relay not ready are
in `/readyz` as well. The log has `alarm_begins`, `alarm_stands` once a day, and `alarm_ends`.

`[alarms]` ([SETTINGS.md](SETTINGS.md)) has the thresholds, and further recipients. Each address and the program get
each notice once, also over a restart, though twice if the relay ends at that moment. A critical alarm is mailed
within a minute of its begin, all else at most every five minutes. A notice that cannot be mailed waits for the next
mail. Rules for Prometheus, tested with promtool, and a dashboard for Grafana are in
[prometheus/](prometheus/README.md).

Relays of several hosts that share PostgreSQL each report separately. If one has held a mail and another has delivered
it, the mail waits for the first until that relay has not tried for long. A restart forgets no waiting mail. After a
kill, mail that left in the last seconds before may be reported as waiting for two hours.

"""


def markdown() -> str:
    """The whole page."""
    return (
        _INTRODUCTION + "".join(map(_line, all_metrics().values())) + _ALARMS + "\n".join(map(_alarm, ALARMS.values()))
    )


def _alarm(alarm: Alarm) -> str:
    about = f", for each {alarm.about}" if alarm.about else ""
    ready = " /readyz says so too." if alarm.not_ready else ""
    return (
        f"### `{alarm.name}`{about}\n\n{alarm.severity.capitalize()}. {alarm.meaning} "
        f"Begins when {alarm.begins}. Ends when {alarm.ends}.{ready}"
        f"\n\nRemedy: {alarm.what_to_do}\n"
    )


def _line(metric: Metric) -> str:
    labels = ", ".join(f"`{each}`" for each in metric.labels)
    together = metric.together if metric.kind == "gauge" else "sum"
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} | {together} |\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
