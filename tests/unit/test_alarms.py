"""Alarms by themselves: the rule of each out of numbers, and that none flaps.
Standard: relay/counting/alarms.py has an entry for each rule and a rule for each entry.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import threading
from collections.abc import Callable, Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from time import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from relay.config import AlarmSettings, CanarySettings, Config
from relay.counting import metrics
from relay.counting.alarms import ALARMS, PUT_ASIDE
from relay.counting.board import Board
from relay.errors import RelayError
from relay.forward import NextHop
from relay.mail import OURS, Mail
from relay.policy.decide import PolicySet
from relay.process import app
from relay.process.upkeep import held_mail_kept
from relay.quarantine import REASONS
from relay.status import Watched, alarms, observation
from relay.status.active_alarms import MOST, ActiveAlarm, public_cause
from relay.status.alarms import AGAIN_S, Alarms
from relay.status.notifier import MOST as MOST_NOTICES, AlarmNotifier
from relay.status.observation import Observation, Observer
from relay.status.page.words import _errors, reason
from relay.status.ready import Readiness
from relay.status.rules import RULES, Seen

EMPTY = PolicySet(Path("/policies"), {}, {}, "0" * 40)
ME = ("outgoing", "smtp", "", "plaintext", "delivered")
HELD = ("outgoing", "smtp", "bob", "none", "held")


@pytest.fixture(name="now")
def _now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What all clocks here show."""
    now = [1_000_000.0]
    monkeypatch.setattr(observation, "boot_time", lambda: now[0])
    monkeypatch.setattr(alarms, "time", SimpleNamespace(time=lambda: now[0], monotonic=lambda: now[0]))
    monkeypatch.setattr(observation, "clock_offset", lambda: 5000.0)
    return now


class Policies:
    """Broken ones."""

    problems = ("x.toml:1: no",)
    failing = ("/policies/tests.toml:1: mail from a@b.example: expected otp",)
    waits_for = "since a file is open for writing: x.toml by vim, process 7"

    def __call__(self) -> PolicySet:
        return EMPTY


def watched(board: Board, **settings: Any) -> Watched:
    config = SimpleNamespace(
        alarms=AlarmSettings(**settings), state_directory=Path("/"),
        audit_directory=Path("/audit"), all_in_clear="", outgoing=True, canary=CanarySettings(every=900.0),
        submission=True, peers={"bob": 0}, kmes={"kme": 0}, imap={"ben": 0}, peers_without_keys={},
    )  # fmt: skip
    return cast(
        Watched,
        SimpleNamespace(
            board=board,
            config=config,
            policies=Policies(),
            keys=SimpleNamespace(pool_rows=list),
            store=SimpleNamespace(history=SimpleNamespace(trouble=None), restore_check=SimpleNamespace(doubt="")),
            known=lambda: SimpleNamespace(config=config),
            postfix=None,
            next_start=None,
        ),
    )


async def looked(board: Board, change: Callable[[], object], now: list[float], **settings: Any) -> Observation:
    """What is seen after a change."""
    observer = Observer(watched(board, **settings), cast(Readiness, SimpleNamespace(found={})), {})
    await observer.look()
    change()
    now[0] += 5
    return await observer.look()


def seen(observation: Observation, name: str, *standing: str) -> list[str]:
    return [about for about, _ in RULES[name](observation, standing)]


def test_each_alarm_has_a_rule_and_each_rule_is_explained() -> None:
    assert list(RULES) == list(ALARMS)
    for each in ALARMS.values():
        assert ("{about}" in each.headline) == bool(each.about), each.name
        assert not each.headline.endswith("."), each.name
        assert each.meaning.endswith("."), each.name
        assert each.what_to_do.endswith((".", "?")), each.name
        assert not each.begins.endswith("."), each.name


async def test_what_came_before_the_first_look_has_grown(now: list[float]) -> None:
    board = Board()
    observer = Observer(watched(board), cast(Readiness, SimpleNamespace(found={})), {})
    board.add(metrics.RECEIVED_KEYS_REFUSED, "km2")
    assert seen(await observer.look(), "received_keys_refused") == ["km2"]


async def test_mail_is_stuck_where_three_were_held_since_the_last_that_went(now: list[float]) -> None:
    board = Board()
    observer = Observer(watched(board), cast(Readiness, SimpleNamespace(found={})), {})

    async def stuck(metric: tuple[str, ...], number: int, *standing: str, new: bool = True) -> bool:
        await observer.look()
        board.add(metrics.MAILS, *metric, by=number)
        if metric == HELD and new:
            board.add(metrics.HELD_FIRST, "outgoing", by=number)
        now[0] += 10
        return bool(seen(await observer.look(), "mail_stuck", *standing))

    assert not await stuck(ME, 1)
    assert not await stuck(HELD, 2)
    assert await stuck(HELD, 1)
    assert await stuck(HELD, 3, "outgoing", new=False), "it stands while nothing goes"
    assert not await stuck(ME, 1, "outgoing")
    assert not await stuck(HELD, 12, new=False), "the same mails, tried again, do not make it begin again"


def _quarantine_81_of_100(board: Board) -> None:
    board.set(metrics.QUARANTINE_BYTES, to=81)
    board.set(metrics.QUARANTINE_LIMIT, to=100)


def _held_twice(board: Board, cause: str) -> None:
    for _ in range(2):
        board.held.held("outgoing", cause, b"1", "x@nowhere.example")


def _memory_90_of_100(board: Board) -> None:
    board.set(metrics.MESSAGE_MEMORY, to=90)
    board.set(metrics.MESSAGE_MEMORY_LIMIT, to=100)


def _late(seconds: float, times: int) -> Callable[[Board], None]:
    def late(board: Board) -> None:
        for _ in range(times):
            board.spread(metrics.LOOP_LAG).observe(seconds)

    return late


def _canary_of(age: float) -> Callable[[Board], None]:
    def out(board: Board) -> None:
        board.set(metrics.CANARY_LIMIT, to=600)
        board.set(metrics.CANARY_AGE, "bob", to=age)

    return out


def _no_answer(board: Board) -> None:
    board.set(metrics.KME_BREAKER, "kme", to=0)
    board.add(metrics.KME_REQUESTS, "kme", "enc_keys", "ambiguous")


def _answers_once(board: Board) -> None:
    board.set(metrics.KME_BREAKER, "kme", to=0)
    for outcome in ("ambiguous", "exhausted"):
        board.add(metrics.KME_REQUESTS, "kme", "status", outcome)


def _refuses_and_gives(board: Board) -> None:
    board.add(metrics.RECEIVED_KEYS_REFUSED, "kme")
    board.add(metrics.KME_REQUESTS, "kme", "dec_keys", "ok")


def _refuses_and_takes(board: Board) -> None:
    board.add(metrics.FAILURES, "outgoing", "NextHopRefused", by=9)
    board.add(metrics.MAILS, *ME)


NOTHING: dict[str, object] = {}
CASES: list[tuple[str, str, Callable[[Board], object], dict[str, object]]] = [
    ("keys_gone", "bob", lambda b: b.add(metrics.KEYS_MISSED, "bob", "KMEExhausted"), NOTHING),
    ("keys_run_low", "kme bob", lambda b: b.set(metrics.KEY_ALARM, "kme", "bob", to=1), NOTHING),
    ("kme_away", "kme", lambda b: b.set(metrics.KME_BREAKER, "kme", to=2), NOTHING),
    ("kme_away", "kme", _no_answer, NOTHING),
    ("received_keys_refused", "kme", lambda b: b.add(metrics.RECEIVED_KEYS_REFUSED, "kme"), NOTHING),
    ("certificate_ends", "peer bob", lambda b: b.set(metrics.CERTIFICATE, "peer", "bob", to=time() + 86_400), NOTHING),
    ("certificate_ended", "peer bob", lambda b: b.set(metrics.CERTIFICATE, "peer", "bob", to=1), NOTHING),
    ("certificates_refused", "kme", lambda b: b.set(metrics.KME_CERTIFICATES_REFUSED, "kme", to=1), NOTHING),
    ("clock_differs", "kme", lambda b: b.set(metrics.KME_CLOCK, "kme", to=-301), NOTHING),
    ("keys_unwatched", "kme bob", lambda b: b.set(metrics.STATUS_AGE, "kme", "bob", to=61), NOTHING),
    ("policy_holds", "outgoing", lambda b: _held_twice(b, "policy"), NOTHING),
    ("sealed_mail_unopened", "", lambda b: b.add(metrics.FAILURES, "outgoing", "SealedForUs"), NOTHING),
    ("mailbox_unwatched", "ben", lambda b: b.set(metrics.MAILBOX_UNWATCHED, "ben", "login", to=1e9), NOTHING),
    ("audit_unwritable", "", lambda b: b.set(metrics.AUDIT_WRITABLE, to=0), NOTHING),
    ("disk_full", "", lambda b: None, {"disk_free": 2**62}),
    ("mail_put_aside", "bob tampered", lambda b: b.set(metrics.QUARANTINE_MESSAGES, "tampered", "bob", to=1), NOTHING),
    ("unsealed_from_peer", "bob sender", lambda b: b.add(metrics.UNSEALED_FROM_PEER, "bob", "sender"), NOTHING),
    ("unsealed_from_peer", "bob author", lambda b: b.add(metrics.UNSEALED_FROM_PEER, "bob", "author"), NOTHING),
    ("unsealed_at_peer", "bob", lambda b: b.add(metrics.UNSEALED_AT_PEER, "bob"), NOTHING),
    ("quarantine_grows", "", lambda b: b.add(metrics.QUARANTINE_PUT, "tampered", "no", by=6), {"unopened": 5}),
    ("quarantine_full", "", _quarantine_81_of_100, NOTHING),
    ("clear_text", "", lambda b: b.add(metrics.MAILS, *ME), {"clear_text": True}),
    ("tripwire", "", lambda b: b.add(metrics.TRIPWIRE), NOTHING),
    ("policy_broken", "", lambda b: b.set(metrics.POLICY_PROBLEMS, to=2), NOTHING),
    ("policy_edit_waits", "", lambda b: b.set(metrics.POLICY_WAITS, to=61), NOTHING),
    ("policy_test_fails", "", lambda b: b.set(metrics.POLICY_TESTS_FAILING, to=1), NOTHING),
    ("next_hop_refuses", "outgoing", lambda b: b.add(metrics.FAILURES, "outgoing", "NextHopRefused", by=3), NOTHING),
    ("canary_late", "bob", _canary_of(601.0), NOTHING),
    ("event_loop_late", "", _late(0.3, 3), NOTHING),
    ("memory_full", "", _memory_90_of_100, NOTHING),
    ("memory_full", "", lambda b: b.add(metrics.REJECTIONS, "outgoing", "smtp", "Overloaded"), NOTHING),
    ("connections_full", "", lambda b: b.add(metrics.REJECTIONS, "outgoing", "smtp", "TooManyConnections"), NOTHING),
]  # fmt: skip
BUT_NOT: list[tuple[str, Callable[[Board], object], dict[str, object]]] = [
    ("quarantine_grows", lambda b: b.add(metrics.QUARANTINE_LAG, by=6), {"unopened": 5}),
    ("kme_away", _answers_once, NOTHING),
    ("kme_away", lambda b: b.set(metrics.KME_BREAKER, "kme", to=1), NOTHING),
    ("received_keys_refused", _refuses_and_gives, NOTHING),
    ("certificate_ends", lambda b: b.set(metrics.CERTIFICATE, "peer", "bob", to=4e9), NOTHING),
    ("certificate_ends", lambda b: b.set(metrics.CERTIFICATE, "peer", "bob", to=1), NOTHING),
    ("certificate_ended", lambda b: b.set(metrics.CERTIFICATE, "peer", "bob", to=4e9), NOTHING),
    ("keys_unwatched", lambda b: b.set(metrics.STATUS_AGE, "kme", "bob", to=59), NOTHING),
    ("policy_holds", lambda b: b.held.held("outgoing", "policy", b"1", "x@nowhere.example"), NOTHING),
    ("policy_holds", lambda b: _held_twice(b, "keys"), NOTHING),
    ("mailbox_unwatched", lambda b: b.set(metrics.MAILBOX_UNWATCHED, "ben", "login", to=math.nan), NOTHING),
    ("disk_full", lambda b: None, {"disk_free": 1}),
    ("mail_put_aside", lambda b: b.set(metrics.QUARANTINE_MESSAGES, "tampered", "", to=9), NOTHING),
    ("mail_put_aside", lambda b: b.set(metrics.QUARANTINE_MESSAGES, "tampered", "bob", to=0), NOTHING),
    ("quarantine_grows", lambda b: b.add(metrics.QUARANTINE_PUT, "tampered", "yes", by=60), {"unopened": 5}),
    ("quarantine_full", lambda b: None, NOTHING),
    ("unsealed_at_peer", lambda b: b.add(metrics.UNSEALED_AT_PEER, "bob", by=0), NOTHING),
    ("clear_text", lambda b: b.add(metrics.MAILS, *ME), NOTHING),
    ("clear_text", lambda b: b.add(metrics.MAILS, *ME[:-1], "inside"), {"clear_text": True}),
    ("policy_edit_waits", lambda b: b.set(metrics.POLICY_WAITS, to=59), NOTHING),
    ("policy_test_fails", lambda b: b.set(metrics.POLICY_TESTS_FAILING, to=0), NOTHING),
    ("next_hop_refuses", lambda b: b.add(metrics.FAILURES, "outgoing", "NextHopRefused", by=2), NOTHING),
    ("next_hop_refuses", _refuses_and_takes, NOTHING),
    ("next_hop_refuses", lambda b: b.add(metrics.FAILURES, "outgoing", "MailLoop", by=9), NOTHING),
    ("canary_late", _canary_of(599.0), NOTHING),
    ("canary_late", lambda b: b.set(metrics.CANARY_AGE, "bob", to=1e9), NOTHING),
    ("event_loop_late", _late(0.2, 30), NOTHING),
    ("memory_full", lambda b: b.add(metrics.REJECTIONS, "outgoing", "smtp", "MessageTooBig"), NOTHING),
    ("memory_full", lambda b: None, NOTHING),
    ("connections_full", lambda b: b.add(metrics.REJECTIONS, "outgoing", "smtp", "Overloaded"), NOTHING),
]  # fmt: skip


@pytest.mark.parametrize(("name", "about", "change", "settings"), CASES)
async def test_it_is_raised(
    name: str, about: str, change: Callable[[Board], object], settings: dict[str, object], now: list[float]
) -> None:
    board = Board()
    assert seen(await looked(board, lambda: change(board), now, **settings), name) == [about]


@pytest.mark.parametrize(("name", "change", "settings"), BUT_NOT)
async def test_it_is_not_raised(
    name: str, change: Callable[[Board], object], settings: dict[str, object], now: list[float]
) -> None:
    board = Board()
    assert seen(await looked(board, lambda: change(board), now, **settings), name) == []


async def test_what_waits_or_fails_is_named_and_the_page_leaves_out_whose_files(now: list[float]) -> None:
    board = Board()
    board.set(metrics.POLICY_WAITS, to=130)
    board.set(metrics.POLICY_TESTS_FAILING, to=1)
    found = await looked(board, lambda: None, now)
    said = {name: cause for name in ("policy_edit_waits", "policy_test_fails") for _, cause in RULES[name](found, ())}
    assert said == {
        "policy_edit_waits": "an edit has waited for 2 min since a file is open for writing: x.toml by vim, process 7",
        "policy_test_fails": "of the policies in force 1 test failed today, the first in tests.toml:1: "
        "mail from a@b.example: expected otp",
    }
    assert [public_cause(name, str(cause)) for name, cause in said.items()] == [
        "an edit has waited for 2 min since a file is open for writing",
        "of the policies in force 1 test failed today, the first in tests.toml:1",
    ]


async def test_what_was_counted_before_the_relay_was_started_raises_nothing(now: list[float]) -> None:
    board = Board()
    board.add(metrics.TRIPWIRE, by=5)
    board.add(metrics.KEYS_MISSED, "bob", "KMEExhausted", by=5)
    found = await looked(board, lambda: None, now)
    assert [name for name in RULES if seen(found, name)] == []


async def test_keys_stay_gone_until_some_are_there(now: list[float]) -> None:
    board = Board()
    board.set(metrics.KEYS_READY, "kme", "bob", to=0)
    found = await looked(board, lambda: None, now)
    assert (seen(found, "keys_gone", "bob"), seen(found, "keys_gone")) == (["bob"], [])
    found = await looked(board, lambda: board.set(metrics.KEYS_STORED, "kme", "bob", to=1), now)
    assert seen(found, "keys_gone", "bob") == []


async def test_a_next_hop_that_stops_is_seen_within_a_minute_with_and_without_mail_and_may_restart(
    now: list[float],
) -> None:
    board, faults, tries = Board(), [("hop", "")], []

    async def states() -> list[tuple[str, str]]:
        tries.append(now[0])
        return faults

    hops = {"outgoing": cast(NextHop, SimpleNamespace(states=states))}
    observer = Observer(watched(board), cast(Readiness, SimpleNamespace(found={})), hops)

    async def away(seconds: float) -> bool:
        now[0] += seconds
        return seen(await observer.look(), "next_hop_away") == ["outgoing"]

    assert (await away(25), len(tries)) == (False, 0)
    assert (await away(5), len(tries)) == (False, 1)
    assert (await away(25), len(tries)) == (False, 1)
    faults[:] = [("hop", "connection refused")]
    assert (await away(10), await away(5), len(tries)) == (False, False, 3)
    faults[:] = [("hop", "")]
    assert (await away(5), await away(25), len(tries)) == (False, False, 4)
    faults[:] = [("hop", "connection refused")]
    assert [await away(seconds) for seconds in (5, 5, 5, 5)] == [False, False, False, True]
    board.add(metrics.MAILS, "outgoing", "smtp", "", "aes", "delivered")
    tried = len(tries)
    assert (await away(5), len(tries)) == (False, tried)
    assert [await away(5) for _ in range(10)][-1], "the mail delivered before it stopped hides it no longer"
    board.add(metrics.MAILS, "outgoing", "smtp", "", "aes", "delivered")
    assert not await away(5)
    board.add(metrics.FAILURES, "outgoing", "Gone")
    assert [await away(5) for _ in range(10)][-1], "nor while mail fails"


async def test_a_clock_that_was_set_and_goes_on_for_an_hour_is_right(
    now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = Observer(watched(Board()), cast(Readiness, SimpleNamespace(found={})), {})
    offset = [5000.0]
    monkeypatch.setattr(observation, "clock_offset", lambda: offset[0])
    found = []
    for step, seconds in ((0.0, 5), (-50.0, 5), (3600.0, 5), (0.0, 3000), (0.0, 700)):
        offset[0] += step
        now[0] += seconds
        found.append(seen(await observer.look(), "clock_jumped"))
    assert found == [[], [], [""], [""], []]


async def test_no_alarm_waits_for_what_is_looked_for_in_the_policy_files(
    now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def slow(_: PolicySet, **_sends: bool) -> Iterator[str]:
        answers.wait()
        yield "a floor that nothing can fulfil"

    monkeypatch.setattr(observation, "in_vain", slow)
    monkeypatch.setattr(observation, "FINDINGS_S", 0.01)
    board = Board()
    observer = Observer(watched(board), cast(Readiness, SimpleNamespace(found={})), {})
    try:
        board.set(metrics.POLICY_PROBLEMS, to=2)
        found = await observer.look()
        assert (seen(found, "policy_broken"), seen(found, "policy_in_vain")) == ([""], [])
    finally:
        answers.set()
    async with asyncio.timeout(30):
        while not seen(await observer.look(), "policy_in_vain"):
            pass


_ABOUT = {
    "": "", "peer": "bob", "KME": "kme", "KME and peer": "kme bob", "account": "ben", "direction": "outgoing",
    "certificate": "peer bob", "peer and reason": "bob tampered", "finding": "no-way-in",
}  # fmt: skip
SEEN_AT_ONCE = {
    "shadow_mode": "settings", "peer_without_keys": "settings", "store_unwritable": "looked at before alarms are",
    "key_receiver_ended": "the same", "not_watched": "the same", "policy_broken": "read before alarms are",
    "policy_edit_waits": "the same", "policy_test_fails": "the same", "next_hop_away": "it is tried",
    "mail_held": "read from a file before", "policy_holds": "the same", "event_loop_late": "another process now",
    "memory_full": "the same", "key_receiver_silent": "the same", "connections_full": "the same", "store_is_another": "read from the store before",
    "groups_old": "looked at before alarms are",
}  # fmt: skip
"""Alarms whose cause a relay that has just started can see, and why."""


def left_standing(file: Path, *alarms_: tuple[str, str]) -> None:
    rows = [{"alarm": name, "about": about, "cause": "why", "since": 1, "told": 999_000} for name, about in alarms_]
    file.write_text(json.dumps({"alarms": rows}))


@pytest.mark.parametrize("name", ALARMS)
async def test_over_a_restart_an_alarm_stays_until_the_end_of_its_cause_was_seen(
    name: str, now: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after a start nothing is measured yet: no row, no file, no number."""
    monkeypatch.setattr(observation, "free_octets", lambda _: None)
    monkeypatch.setattr(observation, "FINDINGS_S", 0.0)
    answers = threading.Event()
    monkeypatch.setattr(observation, "_findings_in", lambda *_, **__: answers.wait() and 0)
    about = _ABOUT[ALARMS[name].about]
    left_standing(tmp_path / "alarms.json", (name, about))
    told = _Kept()
    made = Alarms(Board(), tmp_path / "alarms.json", told, clock=lambda: now[0])
    of = watched(Board(), clear_text=True)
    if name == "file_unusable":
        cast(Any, of).next_start = SimpleNamespace(problem=None)
    if name.startswith("postfix"):
        cast(Any, of).postfix = SimpleNamespace(past={}, kept_back={}, former="", unknown="not judged yet")
    observer = Observer(of, cast(Readiness, SimpleNamespace(found={})), {})
    for _ in range(20):
        now[0] += 5
        made.note(await observer.look())
    answers.set()
    standing = [(each.alarm.name, each.about) for each in made.active if each.alarm.name == name]
    over = name in SEEN_AT_ONCE
    assert standing == ([] if over else [(name, about)])
    assert [each for each in told.said if each[0] == name] == ([(name, "ends")] if over else [])


@pytest.mark.parametrize("name", ["tripwire", "clear_text", "quarantine_grows", "mail_stuck", "next_hop_refuses"])
async def test_what_happened_of_late_is_over_after_ten_quiet_minutes_also_over_a_restart(
    name: str, now: list[float], tmp_path: Path
) -> None:
    left_standing(tmp_path / "alarms.json", (name, _ABOUT[ALARMS[name].about]))
    made = Alarms(Board(), tmp_path / "alarms.json", clock=lambda: now[0])
    observer = Observer(watched(Board(), clear_text=True), cast(Readiness, SimpleNamespace(found={})), {})
    took = 0
    while made.active:
        took += 5
        now[0] += 5
        made.note(await observer.look())
    assert 600 <= took <= 600 + ALARMS[name].clear_s + 5


GONE = [
    ("keys_gone", "carol"), ("keys_run_low", "kme carol"), ("keys_run_low", "km9 bob"), ("keys_unwatched", "km9 bob"),
    ("kme_away", "km9"), ("received_keys_refused", "km9"), ("certificate_ended", "peer carol"),
    ("certificate_ends", "kme_ca km9"), ("certificate_ended", "dkim"), ("certificates_refused", "km9"),
    ("mailbox_unwatched", "ann"), ("mail_put_aside", "carol tampered"), ("canary_late", "carol"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "about"), GONE)
async def test_an_alarm_about_what_is_no_longer_configured_is_over(
    name: str, about: str, now: list[float], tmp_path: Path
) -> None:
    left_standing(tmp_path / "alarms.json", (name, about))
    made = Alarms(Board(), tmp_path / "alarms.json", clock=lambda: now[0])
    observer = Observer(watched(Board()), cast(Readiness, SimpleNamespace(found={})), {})
    now[0] += ALARMS[name].clear_s
    made.note(await observer.look())
    assert made.active == []


class _Kept:
    """A notifier that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def notify(self, standing: ActiveAlarm, state: str) -> None:
        self.said.append((standing.alarm.name, state))

    def pending(self) -> dict[str, Any]:
        return {}

    def resume(self, pending: object) -> None:
        """There is nothing to resume."""


async def test_the_relays_own_mail_neither_keeps_the_alarm_about_held_mail_up_nor_ends_it(now: list[float]) -> None:
    board = Board()
    observer = Observer(watched(board), cast(Readiness, SimpleNamespace(found={})), {})
    board.add(metrics.MAILS, *HELD, by=3)
    board.add(metrics.HELD_FIRST, "outgoing", by=3)
    now[0] += 10
    assert seen(await observer.look(), "mail_stuck") == ["outgoing"]
    board.add(metrics.MAILS, "outgoing", OURS, "", "plaintext", "inside")
    now[0] += 10
    assert seen(await observer.look(), "mail_stuck", "outgoing") == ["outgoing"]
    for _ in range(70):
        now[0] += 10
        board.add(metrics.MAILS, "outgoing", OURS, "bob", "none", "held")
        found = await observer.look()
    assert seen(found, "mail_stuck", "outgoing") == []


@pytest.fixture(name="faults")
def _faults() -> list[Seen]:
    """What the one rule of these alarms sees."""
    return []


@pytest.fixture(name="raised")
def _raised(tmp_path: Path, now: list[float], faults: list[Seen]) -> Iterator[tuple[Alarms, list[str]]]:
    """Alarms of that rule, and what they say."""
    made = Alarms(Board(), tmp_path / "alarms.json", rules={"keys_gone": lambda *_: list(faults)}, clock=lambda: now[0])
    with capture_logs() as logs:
        yield made, cast(Any, logs)


def events(logs: Any) -> list[str]:
    return [each["event"] for each in logs]


NO_SIGHT = cast(Observation, None)


def test_what_comes_and_goes_begins_once_and_ends_once(
    raised: tuple[Alarms, list[str]], faults: list[Seen], now: list[float]
) -> None:
    made, logs = raised
    for number in range(200):
        faults[:] = [("bob", "no key")] if number % 20 == 0 and number < 160 else []
        made.note(NO_SIGHT)
        now[0] += 5
    assert events(logs) == ["alarm_begins", "alarm_ends"]


def test_what_stands_is_said_again_each_day(
    raised: tuple[Alarms, list[str]], faults: list[Seen], now: list[float]
) -> None:
    made, logs = raised
    faults[:] = [("bob", "no key")]
    for _ in range(50):
        made.note(NO_SIGHT)
        now[0] += AGAIN_S / 16
    assert events(logs) == ["alarm_begins", "alarm_stands", "alarm_stands", "alarm_stands"]


def test_what_is_put_aside_is_told_at_once_and_more_of_it_in_a_digest_an_hour(tmp_path: Path, now: list[float]) -> None:
    kinds = {"bob tampered": 1, "carol expired": 0}
    made = Alarms(
        Board(), tmp_path / "alarms.json", clock=lambda: now[0],
        rules={"mail_put_aside": lambda *_: [(about, f"{n} mails") for about, n in kinds.items() if n]},
    )  # fmt: skip
    told = []
    with capture_logs() as logs:
        for minute in range(180):
            kinds["bob tampered"] += minute == 5 or minute == 50 or minute == 130
            kinds["carol expired"] = int(minute >= 7)
            made.note(NO_SIGHT)
            told += [(minute, each["event"], each["about"], each["cause"]) for each in logs]
            logs.clear()
            now[0] += 60
    assert told == [
        (0, "alarm_begins", "bob tampered", "1 mails"),
        (7, "alarm_begins", "carol expired", "1 mails"),
        (60, "alarm_changed", "bob tampered", "3 mails"),
        (130, "alarm_changed", "bob tampered", "4 mails"),
    ]


async def test_where_the_file_of_what_is_held_cannot_be_read_its_alarms_stay(now: list[float], tmp_path: Path) -> None:
    (tmp_path / "held.json").write_text("{")
    left_standing(tmp_path / "alarms.json", ("mail_held", "outgoing"), ("policy_holds", "outgoing"))
    board = Board()
    async with held_mail_kept(board.held, tmp_path / "held.json"):
        made = Alarms(board, tmp_path / "alarms.json", clock=lambda: now[0])
        observer = Observer(watched(board), cast(Readiness, SimpleNamespace(found={})), {})
        now[0] += 120
        made.note(await observer.look())
        assert {each.alarm.name for each in made.active} == {"mail_held", "policy_holds"}


def test_the_number_that_stands_is_bounded(raised: tuple[Alarms, list[str]], faults: list[Seen]) -> None:
    made, logs = raised
    faults[:] = [(f"peer{number}", "no key") for number in range(2 * MOST)]
    made.note(NO_SIGHT)
    assert (len(made.active), len(events(logs))) == (MOST, MOST)


def test_many_warnings_leave_room_for_what_is_critical(tmp_path: Path, now: list[float]) -> None:
    made = Alarms(
        Board(), tmp_path / "alarms.json", clock=lambda: now[0],
        rules={
            "keys_unwatched": lambda *_: [(f"kme peer{number}", "nothing said") for number in range(2 * MOST)],
            "keys_gone": lambda *_: [("bob", "no key")],
        },
    )  # fmt: skip
    made.note(NO_SIGHT)
    assert "bob" in made.about("keys_gone")


class _Out:
    """A way out that keeps the mails."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.came = asyncio.Event()

    async def process(self, mail: Mail) -> list[None]:
        self.mails.append(message_from_bytes(mail.message, policy=policy.default))
        self.came.set()
        return [None]


@pytest.mark.parametrize("warnings", [1, 3 * MOST_NOTICES])
async def test_a_critical_alarm_is_in_the_mail_and_in_its_subject_whatever_was_told_around_it(warnings: int) -> None:
    config = SimpleNamespace(
        alarms=SimpleNamespace(mail_to=("root@alice.example",), command=None),
        site=SimpleNamespace(name="alice", domains=("alice.example",), hostname="relay.alice.example"),
        outgoing=None,
        incoming=None,
    )
    out = _Out()
    notifier = AlarmNotifier(cast(Config, config), Board(), cast(Any, out), {})

    def say(name: str, about: str) -> None:
        notifier.notify(ActiveAlarm(ALARMS[name], about, "a cause", since=0.0, reported=0.0, seen=0.0), "begins")

    say("policy_in_vain", "")
    say("keys_gone", "bob")
    for number in range(warnings):
        say("keys_run_low", f"kme peer{number}")
    mailing = asyncio.create_task(notifier.keep_up())
    async with asyncio.timeout(30):
        await out.came.wait()
    mailing.cancel()
    [mail] = out.mails
    assert ALARMS["keys_gone"].line("bob") in mail["Subject"]
    assert "keys_gone (bob) begins" in mail.get_content()
    assert ALARMS["keys_gone"].what_to_do in str(mail.get_payload())  # as it lies in a mailbox, to be pasted
    assert f"(and {min(warnings + 1, MOST_NOTICES - 1)} more)" in mail["Subject"]


def test_what_was_still_to_be_told_of_an_alarm_that_is_no_more_known_holds_up_nothing(tmp_path: Path) -> None:
    config = SimpleNamespace(
        alarms=SimpleNamespace(mail_to=("root@alice.example",), command=None),
        site=SimpleNamespace(),
        outgoing=None,
        incoming=None,
    )
    notifier = AlarmNotifier(cast(Config, config), Board(), None, {})
    notifier.notify(ActiveAlarm(ALARMS["keys_gone"], "bob", "a cause", since=0.0, reported=0.0, seen=0.0), "begins")
    [word] = notifier.pending()["root@alice.example"]
    after = AlarmNotifier(cast(Config, config), Board(), None, {})
    after.resume({"root@alice.example": [word | {"name": "of_old"}, word]})
    assert after.pending() == {"root@alice.example": [word]}


def test_a_rule_that_breaks_keeps_no_other_from_being_raised(tmp_path: Path, now: list[float]) -> None:
    def breaks(*_: object) -> list[Seen]:
        raise RuntimeError

    made = Alarms(
        Board(),
        tmp_path / "a",
        rules={"tripwire": breaks, "policy_broken": lambda *_: [("", "x")]},
        clock=lambda: now[0],
    )
    with capture_logs() as logs:
        made.note(NO_SIGHT)
    assert events(logs) == ["alarm_not_looked_at", "alarm_begins"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"alarms": [1]}', '{"alarms": [{"alarm": "nothing"}]}', '{"alarms": 5}', "\x00"]
)
def test_a_file_that_cannot_be_read_stands_for_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "alarms.json").write_text(text)
    assert Alarms(Board(), tmp_path / "alarms.json").active == []


def test_a_rule_that_breaks_ends_no_alarm(tmp_path: Path, now: list[float]) -> None:
    works = [True]

    def rule(*_: object) -> list[Seen]:
        if not works[0]:
            raise RuntimeError
        return [("", "x")] if works[0] and now[0] < 1_000_010 else []

    made = Alarms(Board(), tmp_path / "a", rules={"tripwire": rule}, clock=lambda: now[0])
    with capture_logs() as logs:
        made.note(NO_SIGHT)
        works[0] = False
        for _ in range(20):
            now[0] += 60
            made.note(NO_SIGHT)
        assert "alarm_ends" not in events(logs)
        works[0] = True
        now[0] += 60
        made.note(NO_SIGHT)
        assert events(logs)[-1] == "alarm_ends"


def test_an_alarm_that_is_no_more_known_is_left_out(tmp_path: Path) -> None:
    row = {"alarm": "of_old", "about": "", "cause": "", "since": 1, "told": 1}
    (tmp_path / "a").write_text(json.dumps({"alarms": [row, row | {"alarm": "tripwire"}]}))
    assert [each.alarm.name for each in Alarms(Board(), tmp_path / "a").active] == ["tripwire"]


async def test_a_certificate_without_a_name_is_told_without_a_gap(now: list[float]) -> None:
    board = Board()
    found = await looked(board, lambda: board.set(metrics.CERTIFICATE, "submission", "", to=1), now)
    [(_, cause)] = RULES["certificate_ended"](found, ())
    assert cause is not None
    assert cause.startswith("certificate of submission has ended on")


def test_a_kme_that_is_away_is_said_before_what_follows_from_it() -> None:
    """The page takes its verdict from the first of the worst."""
    places = {name: place for place, name in enumerate(ALARMS)}
    assert places["kme_away"] < places["keys_unwatched"]
    assert max(places["kme_away"], places["policy_broken"]) < places["policy_holds"]


def test_each_reason_of_the_quarantine_has_words_for_a_headline_that_accuse_nobody() -> None:
    assert set(PUT_ASIDE) == set(REASONS)
    line = ALARMS["mail_put_aside"].line("alice tampered")
    assert line == "Mail in the name of alice was put aside: changed on the way, or not sealed by that peer"


async def test_in_shadow_mode_policy_holds_nothing_that_leaves(now: list[float]) -> None:
    board = Board()
    found = await looked(board, lambda: _held_twice(board, "policy"), now)
    assert seen(found, "policy_holds") == ["outgoing"]
    cast(Any, found.watched.config).all_in_clear = "shadow mode is on"
    assert seen(found, "policy_holds") == []


def test_what_the_page_says_of_an_error_is_written_for_people() -> None:
    assert app.__name__, "which loads all errors that mail can meet"
    for each in _errors(RelayError):
        text = reason(each.__name__)
        assert not re.search(r"`|\b(we|us|our|ours)\b", text), f"{each.__name__}: {text}"
        assert text.endswith("."), f"{each.__name__}: {text}"
