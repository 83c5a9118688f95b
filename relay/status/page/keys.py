"""The section on quantum keys: for each KME and peer their number, and when they will run out.
Pairs that run out first come first; a curve shows the minimum, which limits mail.
"""

from __future__ import annotations

import math

from relay.counting import metrics
from relay.keys.development import NOT_QUANTUM
from relay.status.page import words
from relay.status.page.charts import curve
from relay.status.page.html import Content, Html, element
from relay.status.page.now import Now
from relay.status.page.sections import badge, facts_list, section

SHOWN = 40
"""Maximum number of pairs of KME and peer shown, those that run out first."""
LEAST = 12
"""Minimum width of a curve, in stretches."""
SPANS = (("Two days", 300, 2 * 86_400), ("Six weeks", 3600, 42 * 86_400))


def show_keys(now: Now) -> Html:
    """The whole section."""
    pools = sorted(
        (pool for pool, _ in now.series(metrics.KEYS_READY)),
        key=lambda each: (_number(now.value(metrics.KEYS_EMPTY, *each)), each),
    )
    if not pools:
        return section("keys", "Quantum keys", element("p", "No KME is configured.", class_="quiet"))
    cards = [_card(now, kme, peer, number) for number, (kme, peer) in enumerate(pools[:SHOWN])]
    more = (
        element("p", f"{len(pools) - SHOWN} more: ", element("code", "qumail-relay keys status"))
        if len(pools) > SHOWN
        else None
    )
    return section("keys", "Quantum keys", element("div", cards, class_="cards"), more)


def _card(now: Now, kme: str, peer: str, number: int) -> Html:
    place = kme, peer
    ready, stored = now.value(metrics.KEYS_READY, *place), now.value(metrics.KEYS_STORED, *place)
    refill, use = now.value(metrics.KEY_REFILL, *place), now.value(metrics.KEY_USE, *place)
    empty = _number(now.value(metrics.KEYS_EMPTY, *place))
    facts: list[tuple[str, Content]] = [
        ("at the KME", _unknown(now, place) if stored is None else words.number(stored)),
        ("ready here", words.number(ready or 0)),
        ("comes", "unknown" if refill is None else words.bits(refill)),
        ("goes", words.bits(use or 0)),
    ]
    return element(
        "article",
        element("div", element("h3", element("bdi", kme), " for ", element("bdi", peer)),
                element("p", _forecast(now, place, empty)), _not_quantum(now, kme), facts_list(facts)),
        element("details", element("summary", "Two days and six weeks", id=f"summary-keys-{number}"),
                [_curves(now, place, *span) for span in SPANS], id=f"details-keys-{number}"),
        class_="card",
    )  # fmt: skip


def _not_quantum(now: Now, kme: str) -> Html | None:
    return element("p", badge("warning", NOT_QUANTUM)) if kme in now.development else None


def _unknown(now: Now, place: tuple[str, str]) -> str:
    age = now.value(metrics.STATUS_AGE, *place)
    # Whole minutes, so that the section does not change at each update.
    return "unknown" if age is None or age < 60 else f"unknown for {words.duration(age // 60 * 60)}"


def _forecast(now: Now, place: tuple[str, str], empty: float) -> Content:
    if now.value(metrics.KEYS_STORED, *place) is None:
        bad = now.stands("kme_away", place[0]) or now.stands("keys_gone", place[1])
        none = "" if now.value(metrics.KEYS_READY, *place) else "no key is ready, and "
        return badge("bad" if bad else "warning", f"{none}the KME does not say how many it has")
    if now.stands("keys_run_low", " ".join(place)):
        return badge("bad", f"gone in {words.duration(empty)}")
    if now.stands("keys_gone", place[1]):
        return badge("bad", "mail for it finds no key")
    return badge("good", "does not run out" if math.isinf(empty) else f"lasts {words.duration(empty)}")


def _curves(now: Now, place: tuple[str, str], name: str, seconds: int, span: int) -> Html:
    until = (now.time // seconds + 1) * seconds
    stretches = [each for each in now.stretches(seconds, until - span) if place in each.pools]
    if not stretches:
        return element("p", "No history so far.", class_="quiet")
    since = min(max(until - span, stretches[0].at), until - LEAST * seconds)
    keys = [(float(each.at), each.pools[place][0]) for each in stretches]
    empty = [(float(each.at), each.pools[place][1]) for each in stretches if math.isfinite(each.pools[place][1])]
    fewest, most = (pick(value for _, value in keys) for pick in (min, max))
    said = f"{name}: between {fewest:,.0f} and {most:,.0f} keys, {keys[-1][1]:,.0f} now"
    shown = [_plot(f"{name}: keys", said, keys, f"{most:,.0f}", seconds, since, until)]
    if empty:
        least, longest = (pick(value for _, value in empty) for pick in (min, max))
        said = f"{name}: time to empty between {words.duration(least)} and {words.duration(longest)}"
        shown.append(_plot(f"{name}: time to empty", said, empty, words.duration(longest), seconds, since, until))
    return element("div", shown, class_="curves")


def _plot(
    title: str, said: str, points: list[tuple[float, float]], most: str, seconds: int, since: float, until: float
) -> Html:
    return element(
        "figure",
        element("figcaption", title),
        element("div", element("span", most, class_="most", aria_hidden="true"),
                curve(said, points, each_s=seconds, since=since, until=until), class_="plot"),
        element("div", element("span", words.clock(since, "%d %b %H:%M")), element("span", "now"), class_="axis",
                aria_hidden="true"),
    )  # fmt: skip


def _number(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value
