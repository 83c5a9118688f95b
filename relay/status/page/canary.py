"""The section about canaries: which peer's came back when, and how long it took.
Standard: as sections.py.
"""

from __future__ import annotations

from relay.counting import metrics
from relay.status.page import words
from relay.status.page.html import Content, Html, element
from relay.status.page.now import Now
from relay.status.page.sections import badge, facts_list, section, table


def show_canary(now: Now) -> Html:
    """Each peer that is asked."""
    every = now.value(metrics.CANARY_INTERVAL)
    answered, dropped = now.sum(metrics.CANARY_ANSWERED), now.sum(metrics.CANARY_DROPPED)
    facts: list[tuple[str, Content]] = [
        ("of peers, answered", words.number(answered)), ("came for nothing", words.number(dropped)),
    ]  # fmt: skip
    if every is None:
        shown = element("p", "No peer is asked: ", element("code", "every"), " of [canary] is not set.", class_="quiet")
        return section("canary", "Canary", shown, facts_list(facts))
    rows: list[list[Content]] = []
    for (peer,), age in now.series(metrics.CANARY_AGE):
        trip = now.value(metrics.CANARY_ROUND_TRIP, peer)
        state, word = (
            ("bad", "late")
            if now.stands("canary_late", peer)
            else ("good", "in time")
            if trip is not None
            else ("quiet", "none yet")
        )
        # Whole minutes: it is not another section at each look.
        minutes = words.duration(age // 60 * 60) if age >= 60 else "less than 1 min"
        when = f" asked for {minutes}" if trip is None else f" {minutes} ago"
        sent, returned = (now.value(each, peer) or 0 for each in (metrics.CANARY_SENT, metrics.CANARY_RETURNED))
        rows.append(
            [element("bdi", peer), [badge(state, word), when],
             "none" if trip is None else f"{trip:,.2f} s", words.number(sent), words.number(returned)]
        )  # fmt: skip
    if not rows:
        return section("canary", "Canary", element("p", "No peer is asked yet.", class_="quiet"), facts_list(facts))
    caption = f"A small mail to each peer's relay and back, every {words.duration(every)}"
    columns = ["peer", "the last came back", "there and back", "sent", "returned"]
    return section("canary", "Canary", table("canary", caption, columns, rows, words_in=(0, 1, 2)), facts_list(facts))
