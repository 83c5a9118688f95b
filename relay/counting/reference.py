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

Everything that `/metrics` of `[status]` shows ([SETTINGS.md](SETTINGS.md)), in the text format of Prometheus. This page
is made from the code, by `python -m relay.counting.reference`; what is written into it by hand is lost.

With several processes (`workers`) each number is that of all together: counters and histograms are sums, and a gauge is
what stands in the last column. A process that is killed takes no count with it. Counters begin anew with the relay.

The values of all labels are bounded: `peer`, `kme` and `kme_group` are names in relay.toml (`peer` is empty where none
can be named). All others come from the lists below. Nothing that a stranger sends becomes a label. Where the mail
server retries a mail, that is another attempt, and counts.

| name | kind | labels | meaning | of several |
|---|---|---|---|---|
"""

_ALARMS = """
## Alarms

This is the one list of conditions in which mail leaves weaker than it could, stays, is put aside, or is not watched.
The relay itself looks every five seconds whether one has come about. Each begins once and ends once, by itself, for all
processes together, and a restart reports none again. It ends only when the end of its cause was seen: what cannot be
looked at stays. Critical: someone has to act now. Warning: it can wait until the
morning. While one stands it is in `qumail_alarm`, the page shows it, and `check` has it as a finding. What makes the
relay not ready is in `/readyz` as well. The log has `alarm_begins`,
`alarm_stands` once a day, and `alarm_ends`.

`[alarms]` ([SETTINGS.md](SETTINGS.md)) has the thresholds, and who else is notified. Each address and the program
gets each notice once, also over a restart, though twice where the relay ends at that moment. A critical alarm that
begins is mailed within a minute, all else at most every five minutes. What cannot be mailed waits for the next mail.
Rules for Prometheus, tested with promtool, and a dashboard for Grafana are in [prometheus/](prometheus/README.md).

Relays of several hosts that share PostgreSQL each report separately. Mail that one has held and another has delivered
waits for the first until it has not been tried there for long. A restart forgets nobody who waits; after a kill, what
went in the last seconds before it may be reported as waiting for two hours.

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
        f"It begins when {alarm.begins}. It ends when {alarm.ends}.{ready}"
        f"\n\nWhat to do: {alarm.what_to_do}\n"
    )


def _line(metric: Metric) -> str:
    labels = ", ".join(f"`{each}`" for each in metric.labels)
    together = metric.together if metric.kind == "gauge" else "sum"
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} | {together} |\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
