"""Each condition is told alike by the page, /metrics, /readyz, the log, `check` and `policy explain`.
Standard: relay/counting/alarms.py is the list; a condition that nobody here can provoke fails.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay.audit.writing import Audit
from relay.config import Config
from relay.counting import metrics
from relay.counting.alarms import ALARMS
from relay.counting.board import Board
from relay.errors import StoreUnavailable
from relay.key_receiver import Receiving
from relay.kme import DevelopmentKMEs
from relay.policy.reload import PoliciesInForce
from relay.process import app
from relay.runtime.aio import clock_offset
from relay.status import Watched, alarms, exposition, measures, next_start, observation, ready, record
from relay.status.alarms import Alarms
from relay.status.observation import Observer
from relay.status.page import feed
from relay.status.ready import Readiness
from relay.store.history import History
from tests.integration.status.test_ready import readyz
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site
from tests.testlib.status_numbers import StatusNumbers, numbers, with_status
from tests.testlib.status_page import page


@dataclass
class Scene:
    """A relay that serves, from inside."""

    site: Site
    watched: Watched
    patch: pytest.MonkeyPatch

    @property
    def board(self) -> Board:
        return self.watched.board

    def say(self, owner: type, name: str, value: object) -> None:
        """A property of this class has this value."""
        self.patch.setattr(owner, name, property(lambda _: value))


def _policy_broken(scene: Scene) -> None:
    scene.site.write_policies({"default.toml": "levels = nothing\n"})


def _one_waits(policies: PoliciesInForce) -> None:
    policies.board.set(metrics.POLICY_WAITS, to=61)


def _one_fails(policies: PoliciesInForce) -> None:
    policies.board.set(metrics.POLICY_TESTS_FAILING, to=1)


def _held(scene: Scene, direction: str, cause: str) -> None:
    """At two tries."""
    for _ in range(2):
        scene.board.held.held(direction, cause, cause.encode(), "ann@alice.example")


def _stuck(scene: Scene) -> None:
    scene.board.add(metrics.MAILS, *HELD, by=3)
    scene.board.add(metrics.HELD_FIRST, "incoming", by=3)


async def _one_finding(_: Observer) -> int:
    return 1


async def _no_store(_: Readiness) -> str:
    return "the store cannot be written: no space"


async def _nobody_listens(*_: object) -> str:
    return "nobody listens"


async def _no_space(*_: object) -> None:
    raise StoreUnavailable("no space")


def _loop_late(scene: Scene) -> None:
    for _ in range(3):
        scene.board.spread(metrics.LOOP_LAG).observe(1.0)


def _canary_late(scene: Scene) -> None:
    scene.board.set(metrics.CANARY_LIMIT, to=600)
    scene.board.set(metrics.CANARY_AGE, "carol", to=601)


def _next_hop_away(scene: Scene) -> None:
    scene.patch.setattr(Observer, "_tried", _nobody_listens)
    scene.board.add(metrics.FAILURES, "incoming", "Gone")


def _kme_away(scene: Scene) -> None:
    """Another call was not made yet."""
    scene.board.set(metrics.KME_BREAKER, "kme2", to=2)


def _clock(scene: Scene) -> None:
    scene.patch.setattr(observation, "clock_offset", lambda: clock_offset() + 86_400)


IN_CLEAR = ("outgoing", "smtp", "", "plaintext", "delivered")
HELD = ("incoming", "smtp", "carol", "none", "held")
SOON = time.time() + 86_400
PROVOKE: dict[str, Callable[[Scene], object]] = {
    "shadow_mode": lambda s: s.say(Config, "all_in_clear", "shadow mode is on"),
    "postfix_bypasses": lambda s: setattr(s.watched.postfix, "past", {"bypass": "leaves in clear"}),
    "postfix_holds": lambda s: setattr(s.watched.postfix, "kept_back", {"loop": "goes round"}),
    "postfix_unwatched": lambda s: setattr(s.watched.postfix, "unknown", "postconf: not found"),
    "mail_held": lambda s: _held(s, "incoming", "store"),
    "mail_stuck": _stuck,
    "policy_holds": lambda s: _held(s, "incoming", "policy"),
    "keys_gone": lambda s: s.board.add(metrics.KEYS_MISSED, "carol", "KMEExhausted"),
    "keys_run_low": lambda s: s.board.set(metrics.KEY_ALARM, "kme2", "carol", to=1),
    "keys_unwatched": lambda s: s.board.set(metrics.STATUS_AGE, "kme2", "carol", to=1000),
    "peer_without_keys": lambda s: s.say(Config, "peers_without_keys", {"carol": "no KME group is shared with it"}),
    "kme_away": _kme_away,
    "received_keys_refused": lambda s: s.board.add(metrics.RECEIVED_KEYS_REFUSED, "kme2"),
    "certificate_ends": lambda s: s.board.set(metrics.CERTIFICATE, "peer", "carol", to=SOON),
    "certificate_ended": lambda s: s.board.set(metrics.CERTIFICATE, "peer", "dave", to=1),
    "certificates_refused": lambda s: s.board.set(metrics.KME_CERTIFICATES_REFUSED, "kme2", to=1),
    "store_unwritable": lambda s: s.patch.setattr(Readiness, "_store", _no_store),
    "store_is_another": lambda s: s.patch.setattr(ready, "_another_secret", lambda *_: "it lacks its secret"),
    "file_unusable": lambda s: s.patch.setattr(next_start.NextStart, "_problems", lambda _: ["ca.key: missing"]),
    "groups_old": lambda s: s.patch.setattr(ready, "_groups", lambda _: "no fetch has succeeded"),
    "disk_full": lambda s: s.patch.setattr(ready, "no_room", lambda _: "no space left on its disk"),
    "audit_unwritable": lambda s: s.patch.setattr(Audit, "why_not_writable", lambda _: "no space"),
    "key_receiver_ended": lambda s: s.say(Receiving, "process_has_ended", True),
    "key_receiver_silent": lambda s: s.say(Receiving, "process_silent_s", 60.0),
    "not_watched": lambda s: s.patch.setattr(ready, "STALE_S", -1.0),
    "sealed_mail_unopened": lambda s: s.board.add(metrics.FAILURES, "outgoing", "SealedForUs"),
    "mailbox_unwatched": lambda s: s.board.set(metrics.MAILBOX_UNWATCHED, "ben", "login", to=1),
    "mail_put_aside": lambda s: s.board.set(metrics.QUARANTINE_MESSAGES, "tampered", "carol", to=1),
    "unsealed_from_peer": lambda s: s.board.add(metrics.UNSEALED_FROM_PEER, "carol", "sender"),
    "unsealed_at_peer": lambda s: s.board.add(metrics.UNSEALED_AT_PEER, "carol"),
    "quarantine_grows": lambda s: s.board.add(metrics.QUARANTINE_PUT, "tampered", "no", by=21),
    "quarantine_full": lambda s: s.board.add(metrics.QUARANTINE_FULL),
    "clear_text": lambda s: s.board.add(metrics.MAILS, *IN_CLEAR),
    "tripwire": lambda s: s.board.add(metrics.TRIPWIRE),
    "policy_broken": _policy_broken,
    "policy_edit_waits": lambda s: s.patch.setattr(PoliciesInForce, "_show_waiting", _one_waits),
    "policy_test_fails": lambda s: s.patch.setattr(PoliciesInForce, "_try_tests_again", _one_fails),
    "policy_in_vain": lambda s: s.patch.setattr(Observer, "_policy_findings", _one_finding),
    "next_hop_away": _next_hop_away,
    "next_hop_refuses": lambda s: s.board.add(metrics.FAILURES, "incoming", "NextHopRefused", by=3),
    "canary_late": _canary_late,
    "event_loop_late": _loop_late,
    "memory_full": lambda s: s.board.add(metrics.REJECTIONS, "outgoing", "smtp", "Overloaded"),
    "connections_full": lambda s: s.board.add(metrics.REJECTIONS, "outgoing", "lmtp", "TooManyConnections"),
    "clock_jumped": _clock,
    "clock_differs": lambda s: s.board.set(metrics.KME_CLOCK, "kme2", to=301),
    "history_not_written": lambda s: s.patch.setattr(History, "add", _no_space),
}


@pytest.mark.parametrize("name", ALARMS)
def test_each_condition_can_be_provoked(name: str) -> None:
    assert name in PROVOKE


async def test_all_faces_of_a_relay_tell_the_same_list(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, value in (
        (alarms, "LOOK_S", 0.1), (alarms, "ALARMS", {name: replace(each, after_s=0) for name, each in ALARMS.items()}),
        (ready, "LOOK_S", 0.05), (next_start, "LOOK_S", 0.05), (measures, "SITE_S", 0.1), (record, "LOOK_S", 0.1),
        (record, "WRITE_S", 0.1), (exposition, "SHARE", math.inf), (feed, "SHARE", math.inf),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    found: list[Watched] = []
    made = app._watched

    def noted(*of: Any, first: bool) -> Watched:
        found.append(made(*of, first=first))
        return found[0]

    monkeypatch.setattr(app, "_watched", noted)
    postfix = SimpleNamespace(past={}, kept_back={}, former="", unknown="", unjudged="", keep_up=asyncio.Event().wait)
    monkeypatch.setattr(app, "_postfix_watch", lambda _: postfix)
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        incoming=sink.address,
    )  # fmt: skip
    with_status(site, '[alarms]\nheld_longer_than = 1\nclear_text = true\n\n[status]\nlisten = "127.0.0.1:0"\n')
    with capture_logs() as logs:
        async with app.running(site.config) as addresses:
            status = addresses["status"]
            assert (await page(status)).text("troubles").startswith("Nothing to do")
            assert await readyz(status) == (200, "ready\n")
            assert (await numbers(status)).sum("qumail_alarm") == 0
            scene = Scene(site, found[0], monkeypatch)
            for provoke in PROVOKE.values():
                provoke(scene)
            try:
                async with asyncio.timeout(60):
                    while missing := set(ALARMS) - _in_metrics(await numbers(status)):
                        await asyncio.sleep(0.1)
            except TimeoutError:
                pytest.fail(f"nothing tells of {missing}")
            code, said = await readyz(status)
            assert code == 503
            names = {each.rpartition("(")[2].removesuffix(")") for each in said.splitlines()}
            assert names == {name for name, each in ALARMS.items() if each.not_ready} | {"disk_full"}
            shown = await page(status)
            troubles = shown.text("troubles")
            standing = {(each["alarm"], each["about"]) for each in _written(site)}
            assert {name for name, _ in standing} == set(ALARMS)
            for name, about in standing:
                assert ALARMS[name].line(about) in troubles, name
                assert f" {name} since " in troubles, name
            assert "enc_keys ✕ left alone" in shown.text("kmes")
            assert shown.text("slot-verdict").startswith("✕ All mail is held: the store cannot be written")
            for words in ([], [f"--postfix={tmp_path}"]):
                _, _, out = await run("check", "--config", site.config_file, "--json", *words)
                checked = {each["what"] for each in json.loads(out) if each["what"].startswith("alarm ")}
                assert checked == {f"alarm {name} {about}".strip() for name, about in standing}
            explain = ["policy", "explain", "--offline", "a@alice.example", "b@bob.example"]
            monkeypatch.setattr(Alarms, "note", lambda *_: None)  # what is fixed for explain goes on standing
            site.write_policies({"default.toml": 'levels = ["aes"]\n'})
            _, error, _ = await run(*explain, "--config", site.config_file)
            for name, about in standing:
                concerned = about in ("", "outgoing", "bypass", "loop") or "bob" in about.split()
                assert (ALARMS[name].line(about) in error) == concerned, name
            monkeypatch.undo()
    assert {each["alarm"] for each in logs if each["event"] == "alarm_begins"} == set(ALARMS)


def _in_metrics(found: StatusNumbers) -> set[str]:
    standing = [dict(labels) for labels, value in found.of_name("qumail_alarm").items() if value]
    assert all(each["severity"] == ALARMS[each["alarm"]].severity for each in standing)
    return {each["alarm"] for each in standing}


def _written(site: Site) -> list[dict[str, str]]:
    return list(json.loads(site.config.alarms_file.read_text())["alarms"])
