"""Makes deploy/METRICS.md, the reference of every metric and every alarm, out of their definitions.
`python -m relay.counting.reference >deploy/METRICS.md`; nothing of it is loaded by a relay that serves.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from relay.counting.alarms import ALARMS
from relay.counting.metric import Metric
from relay.counting.metrics import all_metrics

_INTRODUCTION = """\
# Metrics

Everything at `/metrics` of `[status]` ([SETTINGS.md](SETTINGS.md)), in the text format of Prometheus. Made from the
code, by `python -m relay.counting.reference`; edits by hand are lost.

With `workers` each number stands for all processes together: counters and histograms are summed, gauges as the table
says. A killed process takes no count with it; a restart of the relay begins all counters anew.

Labels: `peer`, `kme` and `kme_group` are names in relay.toml (`peer` is empty if none can be named), all others are
listed. `direction` is outgoing or incoming. `reason` is a class of error in relay/errors.py where nothing else
stands; in quarantine metrics as in `quarantine list`. Nothing from a stranger becomes a label. A retry by the mail
server is another attempt, and counts.

| name | kind | labels | meaning |
|---|---|---|---|
"""

_ALARMS = """
## Alarms

The one list of conditions in which mail leaves weaker than it could, stays, is put aside, or is not watched. The relay
looks every five seconds. Each alarm begins once and ends once, for all processes together, also over a restart. An
alarm ends only when the relay has seen the end of its cause; if it cannot look, the alarm stays. Critical: someone has
to act now. Warning: it can wait until the morning.

A standing alarm is in `qumail_alarm`, on the page, and a finding of `check`; one that makes the relay not ready is in
`/readyz` as well. The log has `alarm_begins`, `alarm_stands` once a day, and `alarm_ends`.

`[alarms]` ([SETTINGS.md](SETTINGS.md)) has thresholds and recipients. Each gets each notice once, twice if the relay
ends at that moment. A critical alarm is mailed within a minute, all else at most every five minutes. A notice that
cannot be mailed waits for the next mail. [prometheus/](prometheus/README.md) has rules and a dashboard.

Relays of several hosts that share PostgreSQL each report separately. If one has held a mail and another has delivered
it, the first counts the mail as waiting until it has not tried for long. After a kill, mail that left in the last
seconds before may be reported as waiting for two hours.

"""


def markdown() -> str:
    """The whole page."""
    return _INTRODUCTION + "".join(map(_line, all_metrics().values())) + _ALARMS + "\n".join(_alarms())


def _alarms() -> Iterator[str]:
    """Each alarm; the remedy of two alarms stands with the first of them alone."""
    first: dict[str, str] = {}
    for alarm in ALARMS.values():
        about = f", for each {alarm.about}" if alarm.about else ""
        ready = " /readyz says so too." if alarm.not_ready else ""
        earlier = first.setdefault(alarm.what_to_do, alarm.name)
        remedy = alarm.what_to_do if earlier == alarm.name else f"as for `{earlier}`."
        yield (
            f"### `{alarm.name}`{about}\n\n{alarm.severity.capitalize()}. {alarm.meaning} "
            f"Begins: {alarm.begins}. Ends: {alarm.ends}.{ready}"
            f"\n\nRemedy: {remedy}\n"
        )


def _line(metric: Metric) -> str:
    labels = ", ".join(f"`{each}`" for each in metric.labels)
    kind = f"gauge, {metric.together}" if metric.kind == "gauge" else metric.kind
    return f"| `{metric.name}` | {kind} | {labels} | {metric.help} |\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
