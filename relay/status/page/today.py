"""The sections that stand beside what to do: mails by level in the last 24 hours, and how long they took.
Standard: as sections.py; a time is the upper bound of a bucket of qumail_step_seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

from relay.counting import amounts, metrics
from relay.status.page.html import Content, Html, element
from relay.status.page.now import Now
from relay.status.page.sections import HOUR_S, HOURS, columns_of, facts_list, section
from relay.status.page.verdict import DIRECTIONS, MINUTES


def show_today(now: Now) -> Html:
    """Delivered mails of each direction, by hour and level."""
    hour = int(now.time // HOUR_S * HOUR_S)
    hours = [hour - HOUR_S * each for each in reversed(range(HOURS))]
    shown = [
        columns_of(now, each, "the last 24 hours", hours, lambda at: at, "%H:%M", "hour (UTC)") for each in DIRECTIONS
    ]
    return section("today", "Delivered mails by level, 24 hours", element("div", shown, class_="charts"))


def show_latency(now: Now) -> Html:
    """How long a mail took here, from its last byte to the answer."""
    facts: list[tuple[str, Content]] = [(each, _times(now.past.times.get(each, ()))) for each in DIRECTIONS]
    return section("latency", f"Time a mail takes, last {MINUTES}", facts_list(facts))


def _times(numbers: Sequence[float]) -> str:
    count = sum(numbers[:-1])
    if not count:
        return "no mail"
    half, most = (_within(numbers[:-1], share * count) for share in (0.5, 0.95))
    return f"half {half}, 95 % {most} ({amounts.many(count, 'mail')})"


def _within(buckets: Sequence[float], wanted: float) -> str:
    """The bound below which this number of them lies."""
    bounds = metrics.STEP_SECONDS.buckets
    for at, number in enumerate(buckets):
        wanted -= number
        if wanted <= 0 and at < len(bounds):
            bound = bounds[at]
            return f"within {bound * 1000:g} ms" if bound < 1 else f"within {bound:g} s"
    return f"over {bounds[-1]:g} s"
