"""The sections on everything else: KMEs, certificates, policies, quarantine, processes, canaries.
Each is a pure function of one moment, as in sections.py.
"""

from __future__ import annotations

from collections import Counter

from relay.counting import amounts, metrics
from relay.keys.faults import Call
from relay.status.page import words
from relay.status.page.html import Content, Html, element
from relay.status.page.now import Now
from relay.status.page.sections import badge, facts_list, section, table

_BREAKER = {0: ("good", "closed"), 1: ("warning", "trying again"), 2: ("bad", "left alone")}


def show_kmes(now: Now) -> Html:
    """The replies and state of each KME."""
    answered: Counter[tuple[str, str]] = Counter()
    failed: Counter[tuple[str, str]] = Counter()
    for (kme, call, outcome), count in now.series(metrics.KME_REQUESTS):
        (answered if outcome == "ok" else failed)[kme, call] += int(count)
    rows: list[list[Content]] = []
    for (kme,), state, call in ((*each, call) for each in now.series(metrics.KME_BREAKER) for call in Call):
        numbers = now.totals.get(metrics.KME_SECONDS, {}).get((kme, call))
        times = sum(numbers[:-1]) if numbers else 0
        mean = f"{numbers[-1] / times * 1000:,.1f} ms" if numbers and times else "none"
        shown = _BREAKER.get(int(state), ("warning", "unknown"))
        if now.stands("kme_away", kme) and shown[0] == "good":
            shown = ("bad", "no answer")
        rows.append(
            [element("bdi", kme), call, badge(*shown),
             words.number(answered[kme, call]), words.number(failed[kme, call]), mean]
        )  # fmt: skip
    if not rows:
        return section("kmes", "KMEs", element("p", "No KME is configured.", class_="quiet"))
    columns = ["KME", "call", "breaker", "answered", "failed", "mean time"]
    return section(
        "kmes", "KMEs", table("kmes", "Requests to each KME since the start", columns, rows, words_in=(0, 1, 2))
    )


def show_certificates(now: Now) -> Html:
    """The expiry of certificates."""
    rows: list[list[Content]] = []
    for (of, name), ends in sorted(now.series(metrics.CERTIFICATE), key=lambda each: each[1]):
        left, about = ends - now.time, f"{of} {name}".strip()
        soon = "warning" if now.stands("certificate_ends", about) else "good"
        state = "bad" if now.stands("certificate_ended", about) else soon
        word = "ended" if left <= 0 else f"{words.duration(left // 86_400 * 86_400 or left)} left"
        whose = element("bdi", f"{of.replace('_', ' ')} {name}".strip())
        rows.append([whose, [badge(state, word), " ", words.clock(ends, "%Y-%m-%d")]])
    if not rows:
        return section("certificates", "Certificates", element("p", "There are none.", class_="quiet"))
    shown = table("certificates", "Certificates, the first to end above", ["of", "ends"], rows, words_in=(0, 1))
    return section("certificates", "Certificates", shown)


def show_policies(now: Now) -> Html:
    """The policies in force."""
    version = next((labels[0] for labels, value in now.series(metrics.POLICY) if value), "unknown")
    broken = now.value(metrics.POLICY_PROBLEMS) or 0
    facts: list[tuple[str, Content]] = [
        ("version in force", element("code", version)),
        ("files", words.number(now.value(metrics.POLICY_FILES) or 0)),
        ("faults in the files now", badge("warning", f"{broken:.0f}") if broken else words.number(0)),
        ("reloads", words.number(now.sum(metrics.POLICY_RELOADS, outcome="loaded"))),
        ("reloads that failed", words.number(now.sum(metrics.POLICY_RELOADS, outcome="broken"))),
    ]
    return section("policies", "Policies", facts_list(facts))


def show_quarantine(now: Now) -> Html:
    """Quarantined mail that needs a decision."""
    counts = [(reason, peer, count) for (reason, peer), count in now.series(metrics.QUARANTINE_MESSAGES) if count]
    taken, limit = now.value(metrics.QUARANTINE_BYTES) or 0, now.value(metrics.QUARANTINE_LIMIT) or 0
    facts: list[tuple[str, Content]] = [
        ("messages", words.number(sum(count for *_, count in counts))),
        ("room taken", f"{amounts.octets(taken)} of {amounts.octets(limit)}"),
    ]
    rows: list[list[Content]] = [
        [element("code", reason), peer or "no peer", words.number(count)] for reason, peer, count in counts
    ]
    shown = table("quarantine", "Messages by reason", ["reason", "from", "messages"], rows) if rows else None
    return section("quarantine", "Quarantine", facts_list(facts), shown)


def show_processes(now: Now) -> Html:
    """Version, processes and resources."""
    lag = now.totals.get(metrics.LOOP_LAG, {}).get(())
    looks = sum(lag[:-1]) if lag else 0
    late = sum(lag[sum(bound <= 0.05 for bound in metrics.LOOP_LAG.buckets) : -1]) if lag else 0
    held, limit = now.value(metrics.MESSAGE_MEMORY) or 0, now.value(metrics.MESSAGE_MEMORY_LIMIT) or 0
    facts: list[tuple[str, Content]] = [
        ("version", now.series(metrics.BUILD)[-1][0][0] if now.series(metrics.BUILD) else "unknown"),
        ("processes that serve", words.number(now.value(metrics.WORKERS) or 0)),
        ("memory", amounts.octets(now.value(metrics.RESIDENT) or 0)),
        ("messages in flight hold", f"{amounts.octets(held)} of {amounts.octets(limit)}"),
        ("event loop more than 50 ms late", f"{late / looks:.2%}" if looks else "none"),
    ]
    return section("processes", "The relay", facts_list(facts))


def show_canary(now: Now) -> Html:
    """The canary of each peer."""
    every = now.value(metrics.CANARY_INTERVAL)
    answered, dropped = now.sum(metrics.CANARY_ANSWERED), now.sum(metrics.CANARY_DROPPED)
    facts: list[tuple[str, Content]] = [
        ("of peers, answered", words.number(answered)), ("dropped without an answer", words.number(dropped)),
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
        # Whole minutes, so that the section does not change at each update.
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
