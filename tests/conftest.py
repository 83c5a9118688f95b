"""Fixtures that every test may use: the development KMEs, databases, sinks, and two sites that share keys.
Standard: each is made for one test and gone after it.
"""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings
from structlog.testing import LogCapture

from relay.config import TCPAddress
from relay.kme import DevelopmentKMEs, LinkSettings
from relay.policy import starting
from tests.testlib import sites
from tests.testlib.databases import backend, postgresql, postgresql_server, sqlite
from tests.testlib.identities import Identities, make_identities
from tests.testlib.long import be_long
from tests.testlib.once import made_once
from tests.testlib.ports import two_free_ports
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, serving

__all__ = ["backend", "postgresql", "postgresql_server", "sqlite"]

settings.register_profile("any machine", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("any machine")  # how fast inputs are made says something of the machine, and of no test
settings.register_profile("few", settings.get_profile("any machine"), max_examples=20)

gc.disable()  # until all tests are collected: nothing of them is garbage

LONG_FIRST = (
    "deploy/test_watched_postfix.py", "system/test_loop_clock.py", "fuzz/test_fuzz.py", "deploy/test_operating.py", "system/test_crash.py",
    "integration/test_workers.py", "deploy/test_package.py", "deploy/test_two_machines.py", "deploy/test_ports.py",
    "test_reloading.py", "store/test_another_store.py",
    "system/test_bench.py", "milter/test_alone.py", "status/test_alarms.py", "cli/test_commands.py",
    "audit/test_records.py", "opening/test_failures.py", "postfix/test_check_postfix.py", "test_two_relays.py",
    "deploy/test_mail_servers.py", "test_conversations.py", "keys/test_forged.py", "imap/test_kill.py",
    "setup/test_two_sites.py", "status/test_page.py", "test_addresses.py", "test_corpus.py",
    "unit/identity/", "unit/policy/", "unit/cms/", "unit/levels/",
)  # fmt: skip
"""Files that take long: begun last, one of them would keep the others' processes waiting at the end."""
OF_NO_PYTHON = re.compile(
    r"/test_\w*document\w*\.py|unit/test_(bench|book|capabilities|distribution|lock|pages|planted|printed|runbook|tables|words)|gate_proof"
)
"""Files about texts, scripts and the rules of policies alone: the same under each Python."""
FEW = 2
"""Cases of one test with --few."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many processes each relay is, and how much tests try."""
    parser.addoption("--few", action="store_true", help="some cases of each test: what another Python makes otherwise")
    parser.addoption("--long", action="store_true", help="the long form of each test that has one: hours")
    parser.addoption(
        "--workers", type=int, default=1, help="processes that serve as one relay, where a test does not look into it"
    )


@pytest.hookimpl(tryfirst=True)  # before pytest-timeout reads its setting
def pytest_configure(config: pytest.Config) -> None:
    """Faults that tests provoke are logged plainly: a traceback with the variables of each frame costs a second."""
    structlog.dev.ConsoleRenderer.get_active().exception_formatter = structlog.dev.plain_traceback
    sites.WORKERS = config.getoption("--workers")
    if config.getoption("--few"):
        settings.load_profile("few")
    if config.getoption("--long"):
        be_long()
        config.option.timeout = 0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first; else in the order of their names. Without tests that the options leave out."""
    left_out = {"in_process"} if sites.WORKERS > 1 else set()
    left_out |= set() if config.getoption("--long") else {"long"}
    out = [item for item in items if any(map(item.get_closest_marker, left_out))]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if not any(map(item.get_closest_marker, left_out))]
    if config.getoption("--long"):
        for item in items:
            item.own_markers = [mark for mark in item.own_markers if mark.name != "timeout"]
    if config.getoption("--few"):
        items[:] = _few(items)
    items.sort(key=lambda item: _turn(str(item.path)))


def _few(items: list[pytest.Item]) -> list[pytest.Item]:
    """Of each test as many cases as FEW, from the first to the last; of files that no Python changes none."""
    tests: dict[tuple[Path, str], list[pytest.Item]] = {}
    for item in items:
        if not OF_NO_PYTHON.search(str(item.path)):
            tests.setdefault((item.path, item.nodeid.partition("[")[0]), []).append(item)
    return [case for cases in tests.values() for case in cases[:: -(-len(cases) // FEW)]]


@cache
def _turn(path: str) -> int:
    return next((at for at, name in enumerate(LONG_FIRST) if name in path), len(LONG_FIRST))


def pytest_collection_finish() -> None:
    """Ten thousand collected tests live to the end: the garbage collector need not look at them again and again.

    What a test leaves is gone after so many objects more, and all of it at the end.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()


@pytest.fixture
def monkeypatch(tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """As pytest's, and undone before the test's files are removed: their removal needs `os.open` as it was."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(autouse=True)
def _believed_at_once() -> Iterator[None]:
    """A relay in this process believes policy files that a test has just written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starting, "QUIET_S", 0.0)
        patch.setattr(starting, "GONE_QUIET_S", 0.0)
        yield


@pytest.fixture(autouse=True)
def _log_settings() -> Iterator[None]:
    """Commands that run inside a test set up the log for themselves; the next test gets it as it was."""
    structlog.reset_defaults()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    """Alice's, Bob's and Eve's certificates, made by the first process that needs them."""
    with made_once(tmp_path_factory, "identities") as directory:
        return make_identities(directory)


@pytest.fixture
async def kmes(tmp_path: Path) -> AsyncIterator[DevelopmentKMEs]:
    """KM1 and KM2 on free ports."""
    link = LinkSettings(key_rate=1_000_000)
    async with DevelopmentKMEs(
        state_dir=tmp_path / "kme", host="127.0.0.1", ports=two_free_ports(), link=link
    ) as servers:
        yield servers


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    """Where Bob's mail ends."""
    async with Sink() as server:
        yield server


@pytest.fixture
async def wire() -> AsyncIterator[Sink]:
    """A second sink, in the place of the network between the sites: it keeps what passed."""
    async with Sink() as server:
        yield server


class Pair:
    """Alice's outgoing and Bob's incoming relay."""

    def __init__(self, alice: Site, bob: Site, outgoing: TCPAddress, incoming: TCPAddress) -> None:
        self.alice, self.bob, self.outgoing, self.incoming = alice, bob, outgoing, incoming


@pytest.fixture
async def pair(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> AsyncIterator[Pair]:
    """A running pair of relays: mail into `pair.outgoing` comes out at `sink`, opened."""
    first, second = kmes.urls
    bob = make_site(tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=second, incoming=sink.address)
    async with AsyncExitStack() as stack:
        incoming = (await stack.enter_async_context(serving(bob)))["incoming"]
        alice = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=first, outgoing=incoming)
        outgoing = (await stack.enter_async_context(serving(alice)))["outgoing"]
        yield Pair(alice, bob, outgoing, incoming)


@pytest.fixture
def log() -> Any:
    """All events of the relay; the one before is restored."""
    capture = LogCapture()
    before = structlog.get_config()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, capture])
    yield capture
    structlog.configure(**before)
