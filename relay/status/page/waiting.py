"""The section on quarantined and held mail: time, peer, cause, size, and the commands to type.
Shows addresses only as set in [status], and no content.
"""

from __future__ import annotations

from relay.counting import amounts, metrics
from relay.files.commands import command
from relay.policy.names import printable
from relay.quarantine import reason_text
from relay.status.page import words
from relay.status.page.html import Content, Html, element
from relay.status.page.now import Now
from relay.status.page.sections import code, section, table
from relay.status.page.verdict import DIRECTIONS, MINUTES
from relay.store.quarantine_table import Kept

_COMMANDS = {
    "policy": "qumail-relay policy explain SENDER RECIPIENT",
    "keys": "qumail-relay keys status",
    "next hop": "qumail-relay check",
    "store": "qumail-relay check",
}
"""Commands with details, by the cause of waiting; for other causes the log has them."""


def show_waiting(now: Now) -> Html:
    """The lists of quarantined and of held mail."""
    parts = [each for each in (_aside(now), _held(now)) if each is not None]
    if not parts:
        return section("waiting", "Nothing is put aside or held", class_="brief")
    return section("waiting", "Put aside and held now", parts)


def _aside(now: Now) -> Html | None:
    number = now.sum(metrics.QUARANTINE_MESSAGES)
    if not number or not now.past.aside:
        return None
    rows: list[list[Content]] = [
        [words.clock(each.arrived_at, "%Y-%m-%d %H:%M"), _whose(now, each),
         [reason_text(each.reason), " ", element("code", each.reason)],
         amounts.octets(each.size), element("code", command("qumail-relay", "quarantine", "show", each.id))]
        for each in now.past.aside
    ]  # fmt: skip
    more = number - len(rows)
    caption = f"Put aside: {amounts.many(number, 'message')}, which nobody has got, the newest above"
    caption += f"; {more:,.0f} more: `qumail-relay quarantine list`" if more > 0 else ""
    return table("aside", code(caption), ["came (UTC)", "from", "why", "size", "command"], rows, words_in=(0, 1, 2, 4))


def _whose(now: Now, kept: Kept) -> Content:
    peer = element("bdi", kept.named or "no peer")
    if not now.addresses:
        return peer
    to = ", ".join(printable(each.address) for each in kept.envelope.recipients)
    return [peer, f": {printable(kept.envelope.sender) or '<>'} to {to or 'nobody'}"]


def _held(now: Now) -> Html | None:
    rows: list[list[Content]] = []
    for direction in DIRECTIONS:
        for (way, cause), count in now.series(metrics.HELD_RECIPIENTS):
            if way == direction and count:
                longest = words.duration(now.value(metrics.HELD_SECONDS, direction, cause) or 0)
                command = _COMMANDS.get(cause)
                rows.append(
                    [direction, cause, words.number(count), longest,
                     element("code", command) if command else "the log says more"]
                )  # fmt: skip
    if not rows:
        return None
    caption = "Held: it waits in the queue of the mail server, where `postqueue -p` shows each SENDER and RECIPIENT"
    if peers := "; ".join(filter(None, (_peers(now, each) for each in DIRECTIONS))):
        caption += f". Attempts held in the last {MINUTES}, by peer: {peers}"
    columns = ["mail", "why", "recipients", "longest wait", "what says more"]
    return table("held-now", code(caption), columns, rows, words_in=(0, 1, 3, 4))


def _peers(now: Now, direction: str) -> str:
    """Peers whose mail was recently held, with the number of attempts, or ""."""
    tries: dict[str, float] = {}
    for (way, _, peer, _, outcome), count in now.past.recent[metrics.MAILS].items():
        if (way, outcome) == (direction, "held") and count:
            tries[peer] = tries.get(peer, 0.0) + count
    each = ", ".join(f"{peer or 'others'} {count:,.0f}" for peer, count in sorted(tries.items()))
    return f"{direction}: {each}" if each else ""
