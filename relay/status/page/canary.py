"""The section that tells of canaries: which peer's came back when, and how long it took.
Standard: as sections.py.
"""

from __future__ import annotations

from relay.counting import metrics
from relay.status.page import words
from relay.status.page.html import Content, Html, element
from relay.status.page.now import Now
from relay.status.page.sections import badge, facts_list, section, table
from relay.store.canaries import late_after


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
        state, word = ("good", "in time") if age <= late_after(every) else ("bad", "late")
        if not now.value(metrics.CANARY_RETURNED, peer) and trip is None:
            state, word = ("warning", "none yet") if state == "good" else (state, word)
        rows.append(
            [element("bdi", peer), [badge(state, word), f" {words.duration(age)}"],
             "none" if trip is None else f"{trip:,.2f} s",
             words.number(now.value(metrics.CANARY_SENT, peer) or 0),
             words.number(now.value(metrics.CANARY_RETURNED, peer) or 0)]
        )  # fmt: skip
    caption = f"A small mail to each peer's relay and back, every {words.duration(every)}"
    columns = ["peer", "since the last came back", "there and back", "sent", "returned"]
    if not rows:
        return section("canary", "Canary", element("p", "No peer is asked yet.", class_="quiet"), facts_list(facts))
    return section("canary", "Canary", table("canary", caption, columns, rows, words_in=(0, 1)), facts_list(facts))
