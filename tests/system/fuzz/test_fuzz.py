"""Every fuzz target for some seconds: hypothesis edits its seeds, what broke it once is tried again, planted faults are found.
Standard: the same inputs in every run; the long form is `python -m tests.system.fuzz TARGET --seconds N`.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import pytest
import structlog
from cryptography.hazmat import asn1
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from relay.dkim import results as dkim_results
from relay.entry.milter import edits as milter_edits
from relay.entry.smtp import senders as submission_senders, session as smtp_session
from relay.entry.smtp.session import LMTPSession
from relay.errors import KMEBadReply
from relay.files import toml
from relay.formats import mime
from relay.formats.cms import der
from relay.identity.composite import CompositeSigningPublicKey
from relay.journey import tripwire
from relay.keys import replies
from relay.policy import structure
from tests.system.fuzz import workers
from tests.system.fuzz.edits import KINDS, MAX_OCTETS, MAX_TIMES, Edit, edited
from tests.system.fuzz.target import Found, Target
from tests.system.fuzz.targets import all_targets, found
from tests.testlib.long import sized
from tests.testlib.speed import slowness
from tests.vectors import parts

TARGETS = all_targets()
EXAMPLES = {
    "smtp": 30,
    "lmtp": 30,
    "milter": 150,
    "mime": 100,
    "tripwire": 150,
    "dkim": 100,
    "policy": 50,
    "relay": 50,
    "workers": 30,
}
USUAL_EXAMPLES = 150
LARGE = 400_000
"""Octets of an input in which what grows by the square shows."""


@pytest.fixture(autouse=True)
def _silent(_log_settings: None) -> None:
    """Thousands of log lines, with tracebacks of the faults that the recipe makes, take longer than the tests."""
    structlog.configure(processors=[_dropped])


def _dropped(*_: object) -> NoReturn:
    raise structlog.DropEvent


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Seeds after some edits, and now and then noise."""
    seeds = target.seeds()
    pieces = st.sampled_from(seeds).flatmap(
        lambda seed: st.integers(0, len(seed)).map(lambda start: seed[start : start + 200])
    )
    octets = st.sampled_from(target.words) | pieces | st.binary(min_size=1, max_size=8)
    times = st.sampled_from([2, 3, 7, 50, MAX_TIMES])
    edit = st.builds(Edit, st.sampled_from(KINDS), st.integers(0, 65535), st.integers(0, 400), octets, times)
    return st.builds(edited, st.sampled_from(seeds), st.lists(edit, max_size=6)) | st.binary(max_size=500)


def run_over(target: Target, run: Callable[[bytes], None], examples: int) -> None:
    """The same inputs each time, without looking for the smallest one that breaks it."""
    strategy = inputs(target)

    @settings(
        max_examples=examples, derandomize=True, deadline=None, database=None,
        phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def over(data: st.DataObject) -> None:
        run(data.draw(strategy))  # not as an argument: hypothesis would print all of it

    over()


@pytest.mark.parametrize("name", TARGETS)
def test_no_edited_input_breaks_a_reader_or_takes_it_long(name: str) -> None:
    target = TARGETS[name]
    run_over(target, target.timed, EXAMPLES.get(name, USUAL_EXAMPLES) * sized(1, 500))


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_their_repetitions_keep_the_bounds_of_time_and_memory(name: str) -> None:
    target = TARGETS[name]
    for seed in sorted(target.seeds(), key=len)[:: max(1, len(target.seeds()) // 4)]:
        target.measured(seed)
        target.measured((seed * (1 + MAX_OCTETS // max(1, len(seed))))[:MAX_OCTETS])


BY_RELAYS = ("mime", "tripwire", "rules", "dkim")
"""In the suite test_loop_clock.py sends the inputs of these through relays, with DKIM and rules on."""
HOSTILE = sorted(
    ((name, what) for name, target in TARGETS.items() for what in target.hostile if sized(name not in BY_RELAYS, 1)),
    key=lambda pair: pair[1],
)
"""Those of one maker are next to each other, so that what it makes is made once."""
hostile_input = lru_cache(maxsize=4)(lambda make, octets: make(octets))


@pytest.mark.parametrize(("name", "what"), HOSTILE)
def test_inputs_made_to_take_long_do_not(name: str, what: str) -> None:
    target = TARGETS[name]
    for octets in (MAX_OCTETS, LARGE)[sized(1, 0) :]:
        target.timed(hostile_input(target.hostile[what], octets))


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_an_input_that_takes_long_is_found(exponent: float) -> None:
    much = 3 * slowness() if exponent > 1 else 1.0

    def takes(data: bytes) -> None:
        began = time.process_time()
        while time.process_time() - began < much * 2e-10 * len(data) ** exponent:
            pass

    target = Target("planted", takes, lambda: [b""], ())
    target.timed(bytes(3000))
    if exponent == 1:
        target.timed(bytes(MAX_OCTETS))
    else:
        with pytest.raises(Found, match="are allowed"):
            target.timed(bytes(MAX_OCTETS))


@pytest.mark.parametrize("path", found(), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_broke_a_reader_once_breaks_it_no_more(path: Path) -> None:
    TARGETS[path.parent.name].measured(path.read_bytes())


# --- the targets themselves ----------------------------------------------------------------------------


def _with_dots_doubled(self: smtp_session._Content) -> bytes:
    return b"".join(self._pieces).replace(b"\r\n.", b"\r\n..")


def _all_taken(self: LMTPSession, mail_id: str, outcomes: tuple[object, ...], failure: object) -> str:
    return "\r\n".join(["250 2.1.5 Ok"] * len(outcomes))


def _any_type(payload: bytes) -> mime.Entity:
    return mime.Entity("message", payload, parts.envelope().encode())


def _with_the_text(item: Any, size: int | None) -> None:
    raise KMEBadReply(f"not a key: {item}")


PLANTED: dict[str, tuple[Any, str, Any]] = {
    "smtp": (smtp_session._Content, "octets", _with_dots_doubled),
    "lmtp": (LMTPSession, "reply", _all_taken),
    "milter": (milter_edits, "BODY_OCTETS", 0),
    "mime": (mime, "NEVER_CARRIED", frozenset({b"return-path"})),
    "tripwire": (tripwire, "_check_body", lambda body, forms: None),
    "cms": (der, "parse", lambda structure, octets, what: asn1.decode_der(structure, octets)),
    "opening": (mime, "unwrap", _any_type),
    "smime": (der, "parse", lambda structure, octets, what: asn1.decode_der(structure, octets)),
    "identity": (CompositeSigningPublicKey, "verify", lambda *_: None),
    "kme": (replies, "_key", _with_the_text),
    "rules": (structure, "MAX_DEPTH", "deep"),
    "dkim": (dkim_results, "_NAME", b"arc-authentication-results"),
    "senders": (submission_senders, "read_addresses", lambda field: [("ann", "alice.example")]),
    "policy": (toml, "_short", lambda text: f"{text}\n"),
    "tests": (toml, "_short", lambda text: f"{text}\n"),
    "relay": (toml, "_short", lambda text: text * 1000),
    "workers": (workers, "CHANGES", re.compile(b"nothing")),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_planted_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = TARGETS[name]
    monkeypatch.setattr(*PLANTED[name])
    with pytest.raises((AssertionError, ValueError, TypeError)):
        run_over(target, target.run, 2000)


@pytest.mark.parametrize("options", [["--without-atheris"], []], ids=["edits alone", "atheris"])
def test_the_command_runs_a_target_for_as_long_as_it_is_told(options: list[str]) -> None:
    if not options and importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: pip install -e '.[fuzz]'")
    command = [sys.executable, "-m", "tests.system.fuzz", "kme", "--seconds", "1", "--seed", "1", *options]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr.decode()
    assert b"nothing found" in done.stdout or b"Done" in done.stderr


def test_a_wrong_target_is_answered_with_the_right_ones() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.system.fuzz", "nothing", "--without-atheris"],
        cwd=Path(__file__).parents[3], capture_output=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 2
    assert all(name.encode() in done.stderr for name in TARGETS)
