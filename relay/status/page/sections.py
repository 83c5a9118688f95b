"""The sections on mail: the verdict, faults, held mail and its causes, and the outcomes.
Each is a pure function of one moment: a heading, then text before charts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from relay import levels
from relay.counting import amounts, metrics
from relay.status.page import words
from relay.status.page.charts import bars
from relay.status.page.html import Content, Html, element
from relay.status.page.now import Now
from relay.status.page.verdict import DIRECTIONS, MINUTES, Trouble, troubles, verdict

OUTCOMES = ("delivered", "inside", "held", "refused", "quarantined", "consumed", "repeated")
_MEANT = {
    "inside": "inside: in clear to a domain of this site",
    "consumed": "consumed: for the canary",
    "repeated": "repeated: those who had it already",
}
HOUR_S, DAY_S = 3600, 86_400
HOURS, DAYS = 24, 42
_PROTECTIONS = {name.replace("+", "-"): name for name in levels.protections()}
"""Names of levels, by their name in style sheets."""
LEVELS = (*_PROTECTIONS, "other", levels.PLAINTEXT)
"""The parts of a column from below, those protected by quantum keys first."""
_NAMES = {**_PROTECTIONS, levels.PLAINTEXT: "in clear"}
_SIGNS = {"good": "✓", "quiet": "·", "warning": "!", "bad": "✕"}
_STATES = {"good": "Good", "quiet": "Quiet", "warning": "Warning", "bad": "Critical"}

ZERO = words.number(0)


def section(name: str, heading: str, *content: Content, class_: str | None = None) -> Html:
    """One section, labelled by its heading."""
    title = element("h2", heading, id=f"{name}-heading")
    return element("section", title, content, id=name, class_=class_, aria_labelledby=f"{name}-heading")


def table(
    name: str,
    caption: Content,
    columns: Sequence[str],
    rows: Sequence[Sequence[Content]],
    *,
    words_in: Sequence[int] = (0,),
) -> Html:
    """A table; columns in `words_in` are text, others numbers. On narrow screens its rows become lists."""
    kind = ["text" if at in words_in else None for at in range(len(columns))]
    head = [element("th", each, scope="col", role="columnheader", class_=kind[at]) for at, each in enumerate(columns)]
    body = [
        element("tr", element("th", element("span", row[0]), scope="row", role="rowheader", class_=kind[0],
                data_label=columns[0]),
                [element("td", element("span", each), role="cell", class_="zero" if each == ZERO else kind[at],
                         data_label=columns[at])
                 for at, each in enumerate(row[1:], 1)], role="row")
        for row in rows
    ]  # fmt: skip
    label = f"caption-{name}"
    whole = element(
        "table", element("thead", element("tr", head, role="row"), role="rowgroup"),
        element("tbody", body, role="rowgroup"), role="table", aria_labelledby=label,
    )  # fmt: skip
    scroll = element(
        "div", whole, class_="scroll", tabindex=0, role="region", aria_labelledby=label, id=f"table-{name}"
    )
    return element("div", element("p", caption, id=label, class_="caption"), scroll)


def badge(state: str, word: str) -> Html:
    """A state as a sign and a word, never as a colour alone."""
    return element("span", element("span", _SIGNS[state], aria_hidden="true"), " ", word, class_=f"badge {state}")


def code(text: str) -> list[Content]:
    """Text with commands in backticks."""
    return [element("code", each) if at % 2 else each for at, each in enumerate(text.split("`"))]


def show_verdict(now: Now) -> Html:
    """The verdict, first on the page."""
    worst = verdict(now)
    return element(
        "div",
        element("span", _SIGNS[worst.state], class_="sign", aria_hidden="true"),
        element("div", element("h1", worst.line), element("p", worst.more)),
        class_=f"verdict {worst.state}",
    )


def show_troubles(now: Now) -> Html:
    """Active alarms with their remedies, and recently ended ones."""
    rows = troubles(now)
    each = [
        element("li", badge(one.state, _STATES[one.state]), element("div", element("strong", one.line),
                element("p", _sentence(one.what), "."), element("p", code(one.do)), _whence(one)))
        for one in rows
    ]  # fmt: skip
    shown = (
        element("ul", each, class_="troubles", role="list")
        if rows
        else element(
            "p",
            "The relay knows of nothing that is wrong",
            ", but its keys are those of development key servers, which are for trying out"
            if now.development
            else None,
            ".",
            class_="quiet",
        )
    )
    return section("troubles", "What is wrong, and what to do" if rows else "Nothing to do", shown, _ended(now))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _whence(trouble: Trouble) -> Html:
    return element("p", element("code", trouble.alarm), " since ", words.clock(trouble.since), class_="quiet small")


def _ended(now: Now) -> Html | None:
    if not now.past.ended:
        return None
    each = [
        element(
            "li", element("code", one.name), f" {one.about} ", words.clock(one.since), " to ", words.clock(one.until)
        )
        for one in now.past.ended
    ]
    return element(
        "details", element("summary", f"Lately over: {len(each)}", id="summary-ended"),
        element("ul", each, role="list"), id="details-ended",
    )  # fmt: skip


def show_held(now: Now) -> Html:
    """The causes for which mail was held, refused or rejected."""
    return section("held", "Held and refused", _reasons(now))


def _reasons(now: Now) -> Html:
    counts: dict[tuple[str, str, str], list[float]] = {}
    for metric, where in ((metrics.FAILURES, ""), (metrics.REJECTIONS, " at the listener")):
        recent = now.past.recent[metric]
        for labels, count in now.series(metric):
            lately, since = counts.setdefault((labels[-1], labels[0], where), [0.0, 0.0])
            counts[labels[-1], labels[0], where] = [lately + recent.get(labels, 0.0), since + count]
    each = [
        element("li",
            element("div", words.reason(reason) or reason, " ",
                    element("span", element("code", reason), f" {direction}{where}", class_="quiet")),
            element("div", element("strong", words.number(lately)), f" in {MINUTES}, ", words.number(since),
                    " since the start", class_="counts"))
        for (reason, direction, where), (lately, since) in sorted(
            counts.items(), key=lambda row: (-row[1][0], -row[1][1], row[0])
        )
    ]  # fmt: skip
    if not each:
        before = " What waits was held before that." if now.sum(metrics.HELD_RECIPIENTS) else ""
        return element("p", f"Nothing was held or refused since the relay was started.{before}", class_="quiet")
    note = element("p", "Why mail was held or refused; each attempt counts.", class_="caption")
    return element("div", note, element("ul", each, class_="reasons", role="list"))


def show_mails(now: Now) -> Html:
    """Exact numbers of mails by outcome, since the start."""
    counts: dict[tuple[str, str], dict[str, float]] = {}
    for (direction, _, _, level, outcome), count in now.series(metrics.MAILS):
        row = counts.setdefault((direction, level), {})
        row[outcome] = row.get(outcome, 0) + count
    outcomes = [each for each in OUTCOMES if any(row.get(each) for row in counts.values())]
    caption = "; ".join(filter(None, ("Each attempt counts", *(_MEANT.get(each) for each in outcomes))))
    if none := [each for each in OUTCOMES if each not in outcomes]:
        caption += f". None so far: {', '.join(none)}"
    ordered = sorted(counts, key=lambda each: (DIRECTIONS.index(each[0]), LEVELS.index(_part(each[1]))))
    rows: list[list[Content]] = [
        [
            _level(level, direction),
            direction,
            *(words.number(counts[direction, level].get(each, 0)) for each in outcomes),
        ]
        for direction, level in ordered
    ]
    since = now.value(metrics.STARTED)
    return section(
        "mails",
        "Mails since the start",
        element("p", "The relay has served since ", words.clock(since), ".", class_="quiet") if since else None,
        table("mails", caption, ["level", "direction", *outcomes], rows, words_in=(0, 1))
        if rows else element("p", "None came so far.", class_="quiet"),
    )  # fmt: skip


def show_clear(now: Now) -> Html:
    """Mail that left the site in clear."""
    started = sum(
        count
        for (direction, _, _, level, outcome), count in now.series(metrics.MAILS)
        if (direction, level, outcome) == ("outgoing", levels.PLAINTEXT, "delivered")
    )
    since = {"24 hours": now.time - DAY_S, "7 days": now.time - 7 * DAY_S, "6 weeks": now.time - DAYS * DAY_S}
    facts: list[tuple[str, Content]] = [("since the start", words.number(started))]
    for name, from_ in since.items():
        stretches = now.stretches(HOUR_S, from_)
        facts.append(
            (
                f"in {name}",
                words.number(sum(_delivered(each.mails, "outgoing").get(levels.PLAINTEXT, 0) for each in stretches)),
            )
        )
    return section(
        "clear",
        "Left in clear",
        element("p", "Outgoing mails to elsewhere that left unsealed",
                ", in shadow mode all" if now.stands("shadow_mode") else ", as policy lets them",
                "; the ledger has each: ",
                element("code", "qumail-relay ledger show"), ".", class_="quiet"),
        facts_list(facts, class_="loud" if started else None),
    )  # fmt: skip


def facts_list(facts: Sequence[tuple[str, Content]], class_: str | None = None) -> Html:
    """A list of names and values."""
    each = [element("div", element("dt", name), element("dd", value)) for name, value in facts]
    return element("dl", each, class_=f"facts {class_}" if class_ else "facts")


def show_history(now: Now) -> Html:
    """Delivered mails by level, over six weeks."""
    day = int(now.time // DAY_S * DAY_S)
    days = [day - DAY_S * each for each in reversed(range(DAYS))]
    shown = [
        columns_of(now, each, "the last six weeks", days, lambda at: at // DAY_S * DAY_S, "%d %b", "day (UTC)")
        for each in DIRECTIONS
    ]
    return section("history", "Delivered mails by level, six weeks", element("div", shown, class_="charts"))


def columns_of(
    now: Now, direction: str, span: str, columns: Sequence[int], column_of: Callable[[int], int], form: str, unit: str
) -> Html:
    """A chart of delivered mails by level, with its legend and its table."""
    parts: dict[int, dict[str, float]] = {at: {} for at in columns}
    for stretch in now.stretches(HOUR_S, columns[0]):
        column = parts.get(column_of(stretch.at))
        if column is not None:
            for level, count in _delivered(stretch.mails, direction).items():
                column[level] = column.get(level, 0) + count
    totals = {each: sum(column.get(each, 0) for column in parts.values()) for each in LEVELS}
    used = [each for each in LEVELS if totals[each]]
    title = f"{direction.capitalize()}, {span}"
    if not used:
        return element("figure", element("figcaption", title), element("p", "No mail.", class_="quiet"))
    most = max(sum(column.values()) for column in parts.values())
    said = ", ".join(f"{totals[each]:,.0f} {_NAMES.get(each, each)}" for each in used)
    legend = [
        element("li", element("span", class_=f"swatch level-{each}", aria_hidden="true"), f"{_NAMES.get(each, each)} ",
                words.number(totals[each]))
        for each in used
    ]  # fmt: skip
    name = re.sub(r"\W+", "-", title.lower())
    rows: list[list[Content]] = [
        [_time(at, form), *(words.number(parts[at].get(each, 0)) for each in used)]
        for at in reversed(columns) if parts[at]
    ]  # fmt: skip
    return element(
        "figure",
        element("figcaption", title),
        element("div", element("span", f"{most:,.0f}", class_="most", aria_hidden="true"),
                bars(f"{title}: {said}", list(parts.values()), used, most), class_="plot"),
        element("div", element("span", _time(columns[0], form)), element("span", _time(columns[-1], form)),
                class_="axis", aria_hidden="true"),
        element("ul", legend, class_="legend", role="list"),
        element("details", element("summary", "As a table", id=f"summary-{name}"),
                table(name, title, [unit, *(_NAMES.get(each, each) for each in used)], rows), id=f"details-{name}"),
        class_=direction,
    )  # fmt: skip


def _delivered(mails: Mapping[tuple[str, ...], float], direction: str) -> dict[str, float]:
    """Delivered mails by part of a column, without mail that stays inside."""
    delivered: dict[str, float] = {}
    for (way, level, outcome), count in mails.items():
        if (way, outcome) == (direction, "delivered"):
            delivered[_part(level)] = delivered.get(_part(level), 0) + count
    return delivered


def _part(level: str) -> str:
    name = level.replace("+", "-")
    return name if name in LEVELS else "other"


def _level(level: str, direction: str) -> Html:
    """A level with its colour; for mail in clear it depends on the direction, since most incoming mail is in clear."""
    part = _part(level)
    name = _NAMES[part] if part == levels.PLAINTEXT else level
    return element("span", element("span", class_=f"swatch level-{part}", aria_hidden="true"), name, class_=direction)


def _time(at: float, form: str) -> str:
    return datetime.fromtimestamp(at, UTC).strftime(form)


def show_today(now: Now) -> Html:
    """Delivered mails of each direction, by hour and level."""
    hour = int(now.time // HOUR_S * HOUR_S)
    hours = [hour - HOUR_S * each for each in reversed(range(HOURS))]
    shown = [
        columns_of(now, each, "the last 24 hours", hours, lambda at: at, "%H:%M", "hour (UTC)") for each in DIRECTIONS
    ]
    return section("today", "Delivered mails by level, 24 hours", element("div", shown, class_="charts"))


def show_latency(now: Now) -> Html:
    """The time from a mail's last byte to the reply: upper bounds of buckets."""
    facts: list[tuple[str, Content]] = [(each, _times(now.past.times.get(each, ()))) for each in DIRECTIONS]
    return section("latency", f"Time a mail takes, last {MINUTES}", facts_list(facts))


def _times(numbers: Sequence[float]) -> str:
    count = sum(numbers[:-1])
    if not count:
        return "no mail"
    half, most = (_within(numbers[:-1], share * count) for share in (0.5, 0.95))
    return f"half {half}, 95 % {most} ({amounts.many(count, 'mail')})"


def _within(buckets: Sequence[float], remaining: float) -> str:
    """The upper bound of this number of values."""
    bounds = metrics.STEP_SECONDS.buckets
    for at, number in enumerate(buckets):
        remaining -= number
        if remaining <= 0 and at < len(bounds):
            bound = bounds[at]
            return f"within {bound * 1000:g} ms" if bound < 1 else f"within {bound:g} s"
    return f"over {bounds[-1]:g} s"
