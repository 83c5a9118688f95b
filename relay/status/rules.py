"""The rule of each alarm: the subjects for which it is active, and why; all pure functions of one view.
relay/counting/alarms.py describes the alarms; a cause names peers and KMEs, but no part of a mail.

A new alarm needs an entry there and a function here.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from relay.counting import metrics
from relay.counting.alarms import ALARMS
from relay.counting.amounts import many, octets
from relay.counting.held import DIRECTIONS, Waiting
from relay.counting.metric import Labels
from relay.key_receiver import receiver
from relay.keys import report
from relay.keys.health import State
from relay.keys.report import clocks_differ
from relay.levels import PLAINTEXT
from relay.mail import OURS
from relay.status.observation import ADOPTED_S, TRY_S, WINDOW_S, Observation, Which

if TYPE_CHECKING:
    from relay.postfix.watch import PostfixWatch

Seen = tuple[str, str | None]
"""The subject of an alarm ("" for the relay), and the cause. None: its state is unknown, and the alarm stays."""
Rule = Callable[[Observation, Collection[str]], Iterable[Seen]]
"""The current subjects are an argument, since an alarm ends only if its end is observed; at start little is known."""

THROUGH = ("delivered", "inside", "repeated")
"""Outcomes of delivered mail."""
LEFT = ("delivered", "repeated")
"""Without mail among our own users: where Postfix filters opened mail, an alarm's own notice is of this kind."""
MINUTE_S = 60.0
KME_S = 30.0
DEFERRED = 3
"""Number of consecutive deferrals or refusals that are blamed on the next hop, not on one recipient."""
LATE = 3
ENDS_SOON_S = 30 * 86_400.0
JUMP_S = 60.0
FULL = 0.9
QUARANTINE_FULL = 0.8
ROOM_AGAIN = 1.1

_SAYS_NO = ("NextHopUnavailable", "NextHopRefused", "NotTaken")
_NO_ANSWER = ("unreachable", "misconfigured", "bad_reply", "ambiguous", "busy")
_NEVER_ASKED = ("not_asked", "cancelled")


def unseen(view: Observation, name: str, active: Collection[str], known: Collection[str] = ()) -> Iterator[Seen]:
    """Subjects of `active` whose state is unknown; subjects no longer configured are left out, and end."""
    config = view.watched.known().config
    configured: dict[str, Collection[str]] = {"peer": config.peers, "KME": config.kmes, "account": config.imap}
    kinds = ALARMS[name].about.split(" and ")
    for about in active:
        words = zip(kinds, about.split(), strict=False)
        if about not in known and all(word in configured.get(kind, (word,)) for kind, word in words):
            yield about, None


def _until_covered(view: Observation, seconds: float, active: Collection[str]) -> Iterator[Seen]:
    """All of `active`, until the relay has observed for this long: only then does absence mean something."""
    if view.looked_for < seconds:
        yield from ((about, None) for about in active)


def _mail_held(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    most = view.watched.config.alarms.held_longer_than
    for direction in sorted({each.direction for each in view.waiting}):
        # If the list of waiting mail is incomplete, retried mail may be missing: then a single attempt counts.
        longest = max(each.longest if view.more_wait else each.again for each in _waiting(view, direction))
        if longest > most:
            yield direction, f"{_who_waits(view, direction)}, the first for {longest:.0f} s"
    if view.more_wait:
        yield from unseen(view, "mail_held", active)


def _waiting(view: Observation, direction: str) -> list[Waiting]:
    return [each for each in view.waiting if each.direction == direction]


def _who_waits(view: Observation, direction: str) -> str:
    """The number of waiting recipients, and the causes."""
    ours = _waiting(view, direction)
    if not ours:
        return "mail is held"
    number = many(sum(each.recipients for each in ours), "recipient")
    causes = ", ".join(f"{each.cause}: {each.recipients}" for each in ours)
    return f"mail to {number}{' and more' if view.more_wait else ''} waits ({causes})"


def _mail_stuck(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    for direction in DIRECTIONS:
        held = _users_mail(direction, ("held",))
        ago = _seconds_since_one_went(view, direction)
        lately = view.grown(metrics.MAILS, WINDOW_S, held)
        # Retries are not new mail; and mail held at RCPT counts once for each recipient.
        new = min(view.grown(metrics.HELD_FIRST, ago, _first_is(direction)), view.grown(metrics.MAILS, ago, held))
        if lately and (new >= DEFERRED or (direction in active and view.grown(metrics.MAILS, ago, held))):
            yield direction, f"{_who_waits(view, direction)}, and none has gone for at least {ago:.0f} s ({direction})"
        elif not view.grown(metrics.MAILS, WINDOW_S, _users_mail(direction, LEFT)):
            yield from _until_covered(view, WINDOW_S, {direction}.intersection(active))


def _seconds_since_one_went(view: Observation, direction: str) -> float:
    """Minimum time since a mail of this direction was delivered: the age of a sample, 0 without one."""
    ages = [view.now - at for at, _ in reversed(view.samples)]
    one_went = _users_mail(direction, LEFT)
    none_since = bisect_left(ages, True, key=lambda age: view.grown(metrics.MAILS, age, one_went) > 0)
    return ages[none_since - 1] if none_since else 0.0


def _policy_holds(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    for each in view.waiting:
        # In shadow mode policy holds no outgoing mail: mail held earlier leaves at its next attempt.
        if each.direction == "outgoing" and view.watched.config.all_in_clear:
            continue
        if each.cause == "policy" and (each.again or view.more_wait):
            yield (
                each.direction,
                f"mail to {many(each.recipients, 'recipient')} is held by policy, the first for {each.longest:.0f} s",
            )
    if view.more_wait:
        yield from unseen(view, "policy_holds", active)


def _keys_gone(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    config, measured = view.watched.known().config, view.gauges(metrics.KEYS_READY)
    still = {*active}.intersection(config.peers if config.kmes else ())
    for peer in sorted({labels[0] for labels in view.totals.get(metrics.KEYS_MISSED, {})} | still):
        missed = view.grown(metrics.KEYS_MISSED, MINUTE_S, _first_is(peer))
        if missed:
            yield (
                peer,
                f"{many(missed, 'mail')} within a minute found no quantum key for peer {peer}{_kmes_say(view, peer)}",
            )
        elif peer in still and not _keys_at_hand(view, peer):
            yield peer, f"no key for peer {peer} is there{_kmes_say(view, peer)}" if measured else None


def _kmes_say(view: Observation, peer: str) -> str:
    """The faults of the KMEs that have this peer's keys."""
    rows = [row for row in view.watched.keys.pool_rows() if row.peer == peer]
    wrong = [f"KME {row.kme}: {row.trouble.removeprefix(f'{row.kme}: ')}" for row in rows if row.trouble]
    if not wrong and (last := view.watched.board.missed.get(peer)):
        wrong.append(f"KME {last}" if last.partition(":")[0] in {row.kme for row in rows} else last)
    return f": {'; '.join(wrong)}" if wrong else ""


def _keys_at_hand(view: Observation, peer: str) -> float:
    counts = [view.gauges(metric) for metric in (metrics.KEYS_READY, metrics.KEYS_STORED)]
    return sum(number for each in counts for (_, name), number in each.items() if name == peer and number > 0)


def _keys_run_low(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    ends, alarms = view.gauges(metrics.KEYS_EMPTY), view.gauges(metrics.KEY_ALARM)
    for (kme, peer), alarm in alarms.items():
        if alarm:
            yield (
                f"{kme} {peer}",
                f"the keys of KME {kme} for peer {peer} will be gone in {ends.get((kme, peer), 0):.0f} s",
            )
    # While the number of keys is unknown, so is its forecast.
    yield from unseen(view, "keys_run_low", active, [f"{kme} {peer}" for kme, peer in ends])


def _keys_unwatched(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    ages = view.gauges(metrics.STATUS_AGE)
    for (kme, peer), age in ages.items():
        if age > report.STATUS_MAX_AGE_S:
            yield (
                f"{kme} {peer}",
                f"KME {kme} has not said for {age // 60:.0f} min how many keys it has for peer {peer}",
            )
    yield from unseen(view, "keys_unwatched", active, [f"{kme} {peer}" for kme, peer in ages])


def _peer_without_keys(view: Observation, _: Collection[str]) -> Iterator[Seen]:
    yield from view.watched.known().config.peers_without_keys.items()


def _kme_away(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    states = view.gauges(metrics.KME_BREAKER)
    for kme in sorted({name for (name,) in states} | {*active}.intersection(view.watched.config.kmes)):
        failed = view.grown(metrics.KME_REQUESTS, KME_S, _call_of(kme, lambda outcome: outcome in _NO_ANSWER))
        answered = view.grown(
            metrics.KME_REQUESTS, KME_S, _call_of(kme, lambda outcome: outcome not in (*_NO_ANSWER, *_NEVER_ASKED))
        )
        if states.get((kme,)) == State.OPEN:
            yield kme, f"KME {kme} is not called for some seconds, since it failed so often"
        elif not answered and (failed or kme in active):
            yield kme, f"no call to KME {kme} has succeeded of late"


def _received_keys_refused(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    counted = {labels[0] for labels in view.totals.get(metrics.RECEIVED_KEYS_REFUSED, {})}
    for kme in sorted(counted | {*active}.intersection(view.watched.config.kmes)):
        refused = view.grown(metrics.RECEIVED_KEYS_REFUSED, MINUTE_S, _first_is(kme))
        gave, knew_none = (
            view.grown(metrics.KME_REQUESTS, MINUTE_S, _call_of(kme, outcome.__eq__, "dec_keys"))
            for outcome in ("ok", "not_found")
        )
        if not gave and (refused or (kme in active and not knew_none)):
            said = next((row.trouble for row in view.watched.keys.pool_rows() if row.kme == kme and row.trouble), "")
            about = "has answered calls for keys of arriving mail without a word about a key, or not at all"
            yield kme, f"KME {kme}, or a proxy in front of it, {about}, and none since{said and ': '}{said}"


def _certificate_ends(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    for whose, left, day in _certificates(view, active):
        if left is None or 0 < left < ENDS_SOON_S:
            yield whose, f"certificate of {whose} ends on {day}" if left else None


def _certificate_ended(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    for whose, left, day in _certificates(view, active):
        if left is None or left <= 0:
            yield whose, f"certificate of {whose} has ended on {day}" if left is not None else None


def _certificates_refused(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    known = view.gauges(metrics.KME_CERTIFICATES_REFUSED)
    yield from unseen(view, "certificates_refused", active, [kme for (kme,) in known])
    for (kme,), refused in known.items():
        if refused:
            trouble = next((row.trouble for row in view.watched.keys.pool_rows() if row.kme == kme), "")
            yield kme, trouble or f"KME {kme} does not take the renewed files, and those before are used"


def _certificates(view: Observation, active: Collection[str]) -> Iterator[tuple[str, float | None, str]]:
    """Yields each certificate's name, seconds left, and last day; None if it is unreadable."""
    now, config = datetime.now(UTC).timestamp(), view.watched.known().config
    known = {f"{of} {name}".strip() for of, name in view.gauges(metrics.CERTIFICATE)}
    for about in {*active} - known:
        of, _, name = about.partition(" ")
        if name in {*config.peers, *config.kmes} or getattr(config, of, None) is not None:
            yield about, None, ""
    for (of, name), end in view.gauges(metrics.CERTIFICATE).items():
        if not math.isnan(end):
            day = datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%d %H:%M UTC")
            yield f"{of} {name}".strip(), end - now, day


def _not_ready(name: str) -> Rule:
    """A rule for a fault found by relay/status/ready.py."""

    def rule(view: Observation, _: Collection[str]) -> Iterator[Seen]:
        if cause := view.not_ready.get(name):
            yield "", cause

    return rule


def _key_receiver_silent(view: Observation, _: Collection[str]) -> Iterator[Seen]:
    silent = max(view.gauges(metrics.KEY_RECEIVER_SILENT).values(), default=0.0)
    if silent >= receiver.SILENT_S:
        yield "", f"the process `relay keys` has not answered for {silent:.0f} s: no KME is asked for received keys"


def _store_is_another(view: Observation, _: Collection[str]) -> Iterator[Seen]:
    # The doubt is in the store: an unreadable store ends nothing.
    doubts = (view.watched.store.restore_check.doubt, view.not_ready.get("store_is_another"))
    if doubt := "; ".join(filter(None, doubts)):
        yield "", doubt


def _file_unusable(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    watch = view.watched.next_start
    if (cause := watch.problem if watch is not None else "") is None:
        yield from unseen(view, "file_unusable", active)
    elif cause:
        yield "", cause


def _disk_full(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    least = view.watched.config.alarms.disk_free
    if cause := view.not_ready.get("disk_full"):
        yield "", cause
    elif view.disk_free is None:
        yield from unseen(view, "disk_full", active)
    elif view.disk_free < least * (ROOM_AGAIN if active else 1):
        yield "", f"{octets(view.disk_free)} free on the disk of {view.watched.config.state_directory}"


def _audit_unwritable(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    writable = view.gauges(metrics.AUDIT_WRITABLE)
    if cause := view.not_ready.get("audit_unwritable"):
        yield "", cause
    elif not writable:
        yield from unseen(view, "audit_unwritable", active)
    elif not min(writable.values()):
        yield "", f"{view.watched.config.audit_directory}: cannot be written"


def _sealed_mail_unopened(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    number = view.grown(metrics.FAILURES, WINDOW_S, _failed("outgoing", ("SealedForUs",)))
    waits = any((each.direction, each.cause) == ("outgoing", "other") for each in view.waiting)
    if number or (active and waits):
        yield "", f"{many(number, 'time')} of late sealed mail for this site was held, which this relay cannot open"
    else:
        yield from _until_covered(view, WINDOW_S, active)


def _mailbox_unwatched(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    yield from unseen(view, "mailbox_unwatched", active, view.watched.board.unwatched)
    for (account, why), since in view.gauges(metrics.MAILBOX_UNWATCHED).items():
        day = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%d %H:%M UTC")
        said = view.watched.board.unwatched.get(account) or "the log of the process that watches it has the cause"
        yield account, f"mailbox {account} has not been watched since {day} ({why}): {said}"


def _quarantine_grows(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    put = view.grown(metrics.QUARANTINE_PUT, WINDOW_S, lambda labels: labels[1] == "no")
    if put > view.watched.config.alarms.unopened:
        yield "", f"{many(put, 'mail')} put in quarantine of late"
    yield from _until_covered(view, WINDOW_S, active)


def _mail_put_aside(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    rows = view.gauges(metrics.QUARANTINE_MESSAGES)
    # Mail missing from a replaced store was never decided about.
    lost = view.watched.store.restore_check.doubt
    known = [f"{peer} {reason}" for (reason, peer), number in rows.items() if number or not lost]
    yield from unseen(view, "mail_put_aside", active, known)
    for (reason, peer), number in rows.items():
        if peer and number:
            named = f"in the name of peer {peer}, as sender or sealed layers say (not verified)"
            yield f"{peer} {reason}", f"{many(number, 'mail')} {named}, in quarantine: {reason}"


def _unsealed_from_peer(view: Observation, _: Collection[str]) -> Iterator[Seen]:
    for (peer, by), number in view.gauges(metrics.UNSEALED_FROM_PEER).items():
        if view.grown(metrics.UNSEALED_FROM_PEER, MINUTE_S, (peer, by).__eq__):
            yield f"{peer} {by}", f"{many(number, 'mail')} since the relay was started"


def _unsealed_at_peer(view: Observation, _: Collection[str]) -> Iterator[Seen]:
    for (peer,), number in view.gauges(metrics.UNSEALED_AT_PEER).items():
        if view.grown(metrics.UNSEALED_AT_PEER, MINUTE_S, _first_is(peer)):
            yield peer, f"{many(number, 'mail')} since the relay was started, as the relay of peer {peer} says"


def _postfix_bypasses(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    if view.watched.postfix is not None:
        yield from _until_restarted(view.watched.postfix, view.watched.postfix.past, active)


def _postfix_holds(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    if view.watched.postfix is not None:
        yield from _until_restarted(view.watched.postfix, view.watched.postfix.kept_back, active)


def _until_restarted(watch: PostfixWatch, found: Mapping[str, str], active: Collection[str]) -> Iterator[Seen]:
    """The present faults, and former ones until Postfix was restarted since, as far as that is known."""
    yield from found.items()
    for code in sorted(set(active) - found.keys()) if watch.unknown or watch.former else ():
        yield code, None if watch.unknown else watch.former


def _postfix_unwatched(view: Observation, _: Collection[str]) -> Iterator[Seen]:
    watch = view.watched.postfix
    if watch is not None and (cause := "; ".join(filter(None, (watch.unknown, watch.unjudged)))):
        yield "", cause


def _shadow_mode(view: Observation, _: Collection[str]) -> Iterator[Seen]:
    if cause := view.watched.config.all_in_clear:
        yield "", cause


def _quarantine_full(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    taken, limit = (
        max(view.gauges(each).values(), default=math.nan)
        for each in (metrics.QUARANTINE_BYTES, metrics.QUARANTINE_LIMIT)
    )
    if taken >= QUARANTINE_FULL * limit or view.grown(metrics.QUARANTINE_FULL, WINDOW_S):
        yield "", f"{octets(taken)} of {octets(limit)} are taken"
    elif math.isnan(taken + limit):
        yield from unseen(view, "quarantine_full", active)


def _clear_text(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    def in_clear(labels: Labels) -> bool:
        direction, _, _, level, outcome = labels
        return (direction, level, outcome) == ("outgoing", PLAINTEXT, "delivered")

    if not view.watched.config.alarms.clear_text:
        return
    if number := view.grown(metrics.MAILS, WINDOW_S, in_clear):
        yield "", f"{many(number, 'mail')} left in clear to elsewhere of late"
    yield from _until_covered(view, WINDOW_S, active)


def _tripwire(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    if number := view.grown(metrics.TRIPWIRE, WINDOW_S):
        yield "", f"{many(number, 'mail')} held right before leaving otherwise than policy wants"
    yield from _until_covered(view, WINDOW_S, active)


def _policy_broken(view: Observation, _: Collection[str]) -> Iterator[Seen]:
    if faults := max(view.gauges(metrics.POLICY_PROBLEMS).values(), default=0):
        first = next(iter(view.watched.policies.problems), "")
        yield "", f"{many(faults, 'fault')} in the policy files; the set from before is in force: {first}"


def _policy_edit_waits(view: Observation, _: Collection[str]) -> Iterator[Seen]:
    waits = max(view.gauges(metrics.POLICY_WAITS).values(), default=0)
    if waits >= MINUTE_S:
        yield "", f"an edit has waited for {waits // 60:.0f} min {view.watched.policies.waits_for}".strip()


def _policy_test_fails(view: Observation, _: Collection[str]) -> Iterator[Seen]:
    if number := max(view.gauges(metrics.POLICY_TESTS_FAILING).values(), default=0):
        place, _, failure = next(iter(view.watched.policies.failing), "tests.toml: unknown").partition(": ")
        first = place.rpartition("/")[2]
        yield "", f"of the policies in force {many(number, 'test')} failed today, the first in {first}: {failure}"


def _policy_in_vain(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    if view.in_vain is None:
        yield from unseen(view, "policy_in_vain", active)
    elif view.in_vain:
        yield "", f"{many(view.in_vain, 'finding')} in the policy files"


def _history_not_written(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    cause = view.watched.store.history.trouble
    if cause is None:
        yield from unseen(view, "history_not_written", active)
    elif cause:
        yield "", f"the store did not take it: {cause}"


def _next_hop_away(view: Observation, _: Collection[str]) -> Iterator[Seen]:
    for direction in DIRECTIONS:
        wrong = view.next_hops.get(direction, "")
        if wrong and not _delivered(view, direction, TRY_S):
            yield direction, f"the next hop of {direction} mail cannot be reached: {wrong}"


def _next_hop_refuses(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    for direction in DIRECTIONS:
        number = view.grown(metrics.FAILURES, WINDOW_S, _failed(direction, _SAYS_NO))
        waits = any((each.direction, each.cause) == (direction, "next hop") for each in view.waiting)
        if not _delivered(view, direction, WINDOW_S) and (number >= DEFERRED or (direction in active and waits)):
            lately = f"has taken none of the last {many(number, 'mail')}" if number else "has not taken what waits"
            yield direction, f"the next hop of {direction} mail {lately}"
        elif not _delivered(view, direction, WINDOW_S):
            yield from _until_covered(view, WINDOW_S, {direction}.intersection(active))


def _delivered(view: Observation, direction: str, seconds: float) -> float:
    return view.grown(metrics.MAILS, seconds, _ended(direction, ("delivered", "inside")))


def _canary_late(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    limit, ages = _canary_limit(view), view.gauges(metrics.CANARY_AGE)
    for (peer,), age in ages.items():
        if age > limit:
            yield peer, f"no canary has come back from peer {peer} for {age:.0f} s"
    if view.watched.config.canary.every is not None and view.watched.config.outgoing is not None:
        yield from unseen(view, "canary_late", active, [peer for (peer,) in ages])


def _canary_limit(view: Observation) -> float:
    """The limit, in seconds."""
    return max(view.gauges(metrics.CANARY_LIMIT).values(), default=math.inf)


def _event_loop_late(view: Observation, _: Collection[str]) -> Iterator[Seen]:
    late = sum(bound <= 0.25 for bound in metrics.LOOP_LAG.buckets)
    number = view.grown(metrics.LOOP_LAG, MINUTE_S, part=lambda numbers: sum(numbers[late:-1]))
    if number >= LATE:
        yield "", f"{many(number, 'time')} within a minute a process came more than a quarter of a second late"


def _memory_full(view: Observation, _: Collection[str]) -> Iterator[Seen]:
    used = sum(view.gauges(metrics.MESSAGE_MEMORY).values())
    limit = sum(view.gauges(metrics.MESSAGE_MEMORY_LIMIT).values())
    turned_away = view.grown(metrics.REJECTIONS, MINUTE_S, lambda labels: labels[2] == "Overloaded")
    if turned_away or (limit and used >= FULL * limit):
        yield "", f"{octets(used)} of {octets(limit)} are taken, {many(turned_away, 'mail')} turned away"


def _connections_full(view: Observation, _: Collection[str]) -> Iterator[Seen]:
    refused = view.grown(metrics.REJECTIONS, MINUTE_S, lambda labels: labels[2] == "TooManyConnections")
    if refused:
        yield "", f"{many(refused, 'connection')} refused within a minute"


def _clock_jumped(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    if abs(view.clock_off) > JUMP_S:
        yield "", f"it was set {'on' if view.clock_off > 0 else 'back'} by {abs(view.clock_off):.0f} s"
    elif not view.clock_was_set:  # before the relay's start: whether it was set back is unknown
        yield from _until_covered(view, ADOPTED_S, active)


def _clock_differs(view: Observation, active: Collection[str]) -> Iterator[Seen]:
    known = {kme: ahead for (kme,), ahead in view.gauges(metrics.KME_CLOCK).items() if not math.isnan(ahead)}
    for kme, ahead in known.items():
        if cause := clocks_differ(kme, ahead):
            yield kme, cause
    yield from unseen(view, "clock_differs", active, known)


def _users_mail(direction: str, outcomes: Collection[str]) -> Which:
    """Matches users' mail: the success or failure of an alarm's own notice must not end or prolong the alarm."""
    return lambda labels: labels[0] == direction and labels[1] != OURS and labels[4] in outcomes


def _ended(direction: str, outcomes: Collection[str]) -> Which:
    return lambda labels: labels[0] == direction and labels[4] in outcomes


def _first_is(value: str) -> Which:
    return lambda labels: labels[0] == value


def _failed(direction: str, reasons: Collection[str]) -> Which:
    return lambda labels: labels[0] == direction and labels[1] in reasons


def _call_of(kme: str, is_one: Callable[[str], bool], call: str = "") -> Which:
    return lambda labels: labels[0] == kme and labels[1] == (call or labels[1]) and is_one(labels[2])


RULES: dict[str, Rule] = {
    "shadow_mode": _shadow_mode,
    "postfix_bypasses": _postfix_bypasses,
    "postfix_holds": _postfix_holds,
    "postfix_unwatched": _postfix_unwatched,
    "mail_held": _mail_held,
    "mail_stuck": _mail_stuck,
    "keys_gone": _keys_gone,
    "keys_run_low": _keys_run_low,
    "peer_without_keys": _peer_without_keys,
    "kme_away": _kme_away,
    "keys_unwatched": _keys_unwatched,
    "received_keys_refused": _received_keys_refused,
    "certificate_ends": _certificate_ends,
    "certificate_ended": _certificate_ended,
    "certificates_refused": _certificates_refused,
    "store_unwritable": _not_ready("store_unwritable"),
    "store_is_another": _store_is_another,
    "file_unusable": _file_unusable,
    "groups_old": _not_ready("groups_old"),
    "disk_full": _disk_full,
    "audit_unwritable": _audit_unwritable,
    "key_receiver_ended": _not_ready("key_receiver_ended"),
    "key_receiver_silent": _key_receiver_silent,
    "not_watched": _not_ready("not_watched"),
    "sealed_mail_unopened": _sealed_mail_unopened,
    "mailbox_unwatched": _mailbox_unwatched,
    "mail_put_aside": _mail_put_aside,
    "unsealed_from_peer": _unsealed_from_peer,
    "unsealed_at_peer": _unsealed_at_peer,
    "quarantine_grows": _quarantine_grows,
    "quarantine_full": _quarantine_full,
    "clear_text": _clear_text,
    "tripwire": _tripwire,
    "policy_broken": _policy_broken,
    "policy_holds": _policy_holds,
    "policy_edit_waits": _policy_edit_waits,
    "policy_test_fails": _policy_test_fails,
    "policy_in_vain": _policy_in_vain,
    "next_hop_away": _next_hop_away,
    "next_hop_refuses": _next_hop_refuses,
    "canary_late": _canary_late,
    "event_loop_late": _event_loop_late,
    "memory_full": _memory_full,
    "connections_full": _connections_full,
    "clock_jumped": _clock_jumped,
    "clock_differs": _clock_differs,
    "history_not_written": _history_not_written,
}
"""All rules, by alarm."""
