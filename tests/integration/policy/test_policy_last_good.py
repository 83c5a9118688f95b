"""A relay or a worker that starts while policy files are broken serves with those that were in force before.
Standard: deploy/RUNBOOK.md, `policies_not_reloaded`; nothing leaves by what a broken set, or half of one, would say.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay.counting import metrics
from relay.counting.board import Board, shared_board
from relay.errors import ConfigError
from relay.kme import DevelopmentKMEs
from relay.policy import reload as policy_reload, settings as policy_settings, starting
from relay.policy.decide import PolicySet
from relay.policy.kept import KeptSets, KeptTransaction
from relay.policy.last_good import LastGood
from relay.policy.load import PolicyFolder
from relay.policy.reload import PoliciesInForce
from relay.policy.settings import on_day
from relay.process import app
from tests.testlib import mails, relay_command
from tests.testlib.counted import counted
from tests.testlib.policy_files import AES, PEERS, write
from tests.testlib.sink import Sink
from tests.testlib.sites import RelayProcess, Site, make_site
from tests.testlib.status_numbers import numbers, with_status
from tests.testlib.submit import submit
from tests.testlib.workers import workers

PQC = 'levels = ["pqc"]\n'
BROKEN = "levels = [\n"
CLEAR = 'levels = ["plaintext"]\nreason = "public"\n'


@pytest.fixture(name="site")
def _site(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Site:
    return with_status(
        make_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
            policies={"bob.example.toml": AES, "news.example.toml": CLEAR},
        )
    )  # fmt: skip


def events(relay: RelayProcess, event: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in relay.log.splitlines() if line.startswith("{")]
    return [each for each in lines if each["event"] == event]


async def test_a_relay_that_starts_while_they_are_broken_serves_as_before_and_says_so(site: Site, sink: Sink) -> None:
    async with app.running(site.config):
        pass
    site.write_policies({"bob.example.toml": BROKEN, "default.toml": CLEAR})
    with capture_logs() as logs:
        async with app.running(site.config) as addresses:
            assert (await submit(addresses["outgoing"], mails.plain())).code == 250
            assert (await submit(addresses["outgoing"], mails.plain(), recipients=["x@other.example"])).code == 451
            assert (await numbers(addresses["status"])).sum("qumail_policy_problems") == 1
            site.write_policies({"bob.example.toml": PQC})
            async with asyncio.timeout(30):
                while (await numbers(addresses["status"])).sum("qumail_policy_problems"):
                    await asyncio.sleep(0.05)
            assert (await submit(addresses["outgoing"], mails.plain(), recipients=["x@other.example"])).code == 250
    [broken] = [each for each in logs if each["event"] == "policies_not_reloaded"]
    assert "bob.example.toml" in broken["problems"][0]
    assert len(sink.got) == 2


async def test_a_worker_that_is_started_anew_while_they_are_broken_serves_as_the_others_do(site: Site) -> None:
    async with workers(site, 2) as relay:
        first = min(events(relay, "worker_started"), key=lambda each: int(str(each["worker"])))
        site.write_policies({"broken.toml": BROKEN})
        async with asyncio.timeout(30):
            while not events(relay, "policies_not_reloaded"):
                await asyncio.sleep(0.05)
        os.kill(int(str(first["process"])), signal.SIGKILL)
        async with asyncio.timeout(60):
            while len(events(relay, "relay_serves")) < 3:
                await asyncio.sleep(0.05)
        found = await numbers(relay.addresses["status"])
        assert (found.sum("qumail_policy_problems"), found.sum("qumail_workers")) == (1, 2)
        for number in range(4):
            message = mails.plain().replace(b"<1@", b"<%d@" % number)
            assert (await submit(relay.addresses["outgoing"], message)).code == 250


async def test_commands_say_when_the_files_are_not_those_in_force(site: Site) -> None:
    mail = "a@alice.example", "x@bob.example"
    commands = ("check",), ("test",), ("explain", "--offline", *mail)

    async def told(name: str, *arguments: str) -> bool:
        _, said, _ = await relay_command.run("policy", name, "--config", site.config_file, *arguments)
        return "these files are not in force" in said

    async with app.running(site.config):
        async with asyncio.timeout(30):
            while not site.config.alarms_file.exists():
                await asyncio.sleep(0.05)
        assert [await told(*each) for each in commands] == [False, False, False]
        with (site.directory / "policies" / "news.example.toml").open("a") as file:
            file.write("# a note that is still being written\n")
            file.flush()
            site.write_policies({"bob.example.toml": PQC})
            assert [await told(*each) for each in commands] == [True, True, True]
        async with asyncio.timeout(30):
            while await told(*commands[0]):
                pass


@pytest.fixture(name="directory")
def _directory(tmp_path: Path) -> Path:
    return write(tmp_path / "policies", {"default.toml": AES, "bob.example/x.toml": PQC, "groups.toml": "# none\n"})


def started(directory: Path, board: Board | None = None) -> PoliciesInForce:
    kept = KeptSets(directory.with_name("kept") / "sets.db")
    return PoliciesInForce(directory, PEERS, board=board, last_good=LastGood(kept))


def test_each_set_that_comes_into_force_is_the_one_from_before(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = started(directory)
    write(directory, {"bob.example/x.toml": AES, "new.example.toml": PQC})
    (directory / "groups.toml").unlink()
    policies.reload()
    monkeypatch.setattr(policy_reload, "GONE_QUIET_S", 0.0)  # files that vanish are believed after some seconds
    policies.look(quiet_s=0.0)
    good = policies()
    write(directory, {"default.toml": BROKEN, "bob.example/x.toml": PQC})
    policies.reload()
    again = started(directory)
    assert again().version == good.version
    assert again().decide("", "x@new.example").levels == ("pqc",)
    assert again.problems == policies.problems
    write(directory, {"default.toml": PQC})
    again.reload()
    assert (again().decide("", "y@y.example").levels, again.problems) == (("pqc",), ())


def test_without_a_set_from_before_nothing_is_in_force(directory: Path) -> None:
    write(directory, {"default.toml": BROKEN})
    with pytest.raises(ConfigError, match=r"(?s)default\.toml.*no set from before is kept"):
        started(directory)


def test_a_set_that_could_not_be_kept_is_not_replaced_by_an_older_one_at_a_start(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = started(directory)
    with monkeypatch.context() as full:
        full.setattr(KeptTransaction, "put", _no_room)
        write(directory, {"floors.toml": '[[floor]]\nsubject_tag = "[x]"\nlevels = ["otp"]\n'})
        policies.reload()
        newer = policies().version
        good = (directory / "default.toml").read_text()
        write(directory, {"default.toml": BROKEN})
        with pytest.raises(ConfigError, match="the set in force last could not be kept"):
            started(directory)
        write(directory, {"default.toml": good})
        assert started(directory)().version == newer
    assert started(directory)().version == newer
    write(directory, {"default.toml": BROKEN})
    assert started(directory)().version == newer, "it is kept now"


def test_a_worker_does_not_start_with_a_kept_set_that_the_others_no_longer_go_by(directory: Path) -> None:
    """Only the first of them keeps sets, and it may have been away when the newer one came into force."""
    shared = shared_board(2)
    started(directory)
    write(directory, {"floors.toml": '[[floor]]\nsubject_tag = "[x]"\nlevels = ["otp"]\n'})
    other = PoliciesInForce(directory, PEERS, board=Board(shared, 1), last_good=None)
    good = (directory / "default.toml").read_text()
    write(directory, {"default.toml": BROKEN})
    with pytest.raises(ConfigError, match=f"other workers go by version {other().version}"):
        started(directory, Board(shared, 0))
    write(directory, {"default.toml": good})
    assert started(directory, Board(shared, 0))().version == other().version


def _no_room(*_: object) -> int:
    raise sqlite3.OperationalError("database or disk is full")


def _half(kept: Path) -> None:
    with closing(sqlite3.connect(kept)) as sets, sets:
        sets.execute("DELETE FROM files WHERE name = 'bob.example/x.toml'")


def _other(kept: Path) -> None:
    with closing(sqlite3.connect(kept)) as sets, sets:
        sets.execute("UPDATE files SET text = ? WHERE name = 'default.toml'", (CLEAR.encode(),))


def _damaged(kept: Path) -> None:
    kept.write_bytes(b"no database at all" * 100)


def _torn(kept: Path) -> None:
    with kept.open("r+b") as file:
        for page in range(1, kept.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)


def _of_another_format(kept: Path) -> None:
    with closing(sqlite3.connect(kept)) as sets, sets:
        sets.execute("DROP TABLE files")
        sets.execute("PRAGMA user_version = 7")


def _gone(kept: Path) -> None:
    kept.unlink()


@pytest.mark.parametrize("spoil", [_half, _other, _damaged, _torn, _of_another_format, _gone])
def test_a_set_that_is_not_kept_whole_counts_for_nothing_and_is_kept_anew(
    directory: Path, spoil: Callable[[Path], None]
) -> None:
    started(directory)
    spoil(directory.with_name("kept") / "sets.db")
    write(directory, {"default.toml": BROKEN})
    with pytest.raises(ConfigError):
        started(directory)
    write(directory, {"default.toml": AES})
    good = started(directory)()
    write(directory, {"default.toml": BROKEN})
    assert started(directory)().version == good.version


def test_another_directory_of_policies_has_no_set_from_before(directory: Path) -> None:
    started(directory)
    with pytest.raises(ConfigError, match="no set from before is kept"):
        started(write(directory.with_name("others"), {"default.toml": BROKEN}))


def test_where_no_copy_can_be_written_the_relay_serves_all_the_same(directory: Path) -> None:
    directory.with_name("kept").write_text("in the way")
    with capture_logs() as logs:
        policies = started(directory)
    assert policies().decide("", "x@bob.example").levels == ("pqc",)
    assert [each["event"] for each in logs] == ["policies_not_kept"]
    directory.with_name("kept").unlink()
    write(directory, {"default.toml": PQC})
    policies.reload()
    write(directory, {"default.toml": BROKEN})
    assert started(directory)().version == policies().version


# --- files that are not quiet at a start --------------------------------------------------------------------------

FLOORS = ('[[floor]]\nsubject_tag = "[x]"\nlevels = ["otp"]\n', '[[floor]]\nsender = "a@a.example"\nlevels = ["otp"]\n')


@pytest.fixture(name="as_usual")
def _as_usual(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How quiet files must be as administrators have it, but time passes by this number of seconds alone."""
    passed = [0.0]
    monkeypatch.setattr(starting, "QUIET_S", 0.4)
    monkeypatch.setattr(starting, "GONE_QUIET_S", 2.0)
    monkeypatch.setattr(starting, "WAIT_S", 0.0)
    monkeypatch.setattr(starting, "LOOK_S", 0.0)
    monkeypatch.setattr(starting, "monotonic", lambda: passed[0])
    now = time.time_ns()
    monkeypatch.setattr(starting, "time_ns", lambda: now + int(passed[0] * 1e9))
    return passed


def edited(directory: Path, passed: list[float]) -> PoliciesInForce:
    """The policies of a process that starts after an edit, which another one had not taken yet."""
    passed[0] += 100
    return started(directory)


def test_a_relay_that_has_no_set_from_before_starts_when_files_are_quiet(
    directory: Path, as_usual: list[float]
) -> None:
    with pytest.raises(ConfigError, match=r"(?s)files have just changed.*no set from before is kept"):
        started(directory)
    as_usual[0] += 0.5
    with (directory / "default.toml").open("a") as file:
        as_usual[0] += 100
        with pytest.raises(ConfigError, match=rf"open for writing: default.toml by .*, process {os.getpid()}"):
            started(directory)
        file.write("# all of it\n")
    as_usual[0] += 100
    assert started(directory)().decide("", "y@y.example").levels == ("aes",)


def test_what_has_just_changed_is_an_edit_that_the_set_from_before_waits_for(
    directory: Path, as_usual: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = edited(directory, as_usual)()
    monkeypatch.setattr(starting, "time_ns", time.time_ns)
    write(directory, {"default.toml": CLEAR, "floors.toml": FLOORS[0]})
    policies = started(directory)
    assert (policies().version, policies.problems) == (before.version, ())
    write(directory, {"floors.toml": "".join(FLOORS)})
    policies.look(quiet_s=0.0)
    assert policies().decide("a@a.example", "y@y.example").levels == ("otp",)


async def test_a_file_that_is_half_written_is_not_in_force_in_a_process_that_starts(
    directory: Path, as_usual: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(directory, {"default.toml": CLEAR, "floors.toml": "".join(FLOORS)})
    edited(directory, as_usual)
    monkeypatch.setattr(policy_reload, "QUIET_S", 0.05)
    monkeypatch.setattr(policy_reload, "LOUD_S", 0.0)
    with (directory / "floors.toml").open("w") as file:
        file.write(FLOORS[0])
        file.flush()
        policies = edited(directory, as_usual)
        task = asyncio.create_task(policies.watch())
        async with asyncio.timeout(30):
            while "floors.toml by" not in policies.waits_for:
                await asyncio.sleep(0.01)
        assert policies().decide("a@a.example", "y@y.example").levels == ("otp",)
        file.write(FLOORS[1].replace("otp", "aes"))
    async with asyncio.timeout(30):
        while policies().decide("a@a.example", "y@y.example").levels == ("otp",):
            await asyncio.sleep(0.01)
    assert policies().decide("a@a.example", "y@y.example").levels == ("aes",)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_worker_waits_for_what_others_have_seen_being_written_though_it_cannot_see_the_program(
    directory: Path, as_usual: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the program is another user's."""
    for module in (starting, policy_reload):
        monkeypatch.setattr(module, "being_written", lambda *_: {})
    monkeypatch.setattr(policy_reload, "QUIET_S", 0.05)
    write(directory, {"default.toml": CLEAR, "floors.toml": "".join(FLOORS)})
    shared = shared_board(3)
    as_usual[0] += 100
    workers = [started(directory, Board(shared, 0))]
    tasks = [asyncio.create_task(workers[0].watch())]

    def levels() -> set[tuple[str, ...]]:
        return {each().decide("a@a.example", "y@y.example").levels for each in workers}

    write(directory, {"new.example.toml": PQC})
    async with asyncio.timeout(30):  # from here on it is watched
        while "new.example.toml" not in workers[0]().files or workers[0].board.cell(metrics.POLICY_WAITS).value > 0:
            await asyncio.sleep(0.01)
    with (directory / "floors.toml").open("w") as file:
        file.write(FLOORS[0])
        file.flush()
        for place in (1, 2):  # as when one after the other is started anew
            async with asyncio.timeout(30):
                while not workers[-1].board.cell(metrics.POLICY_WAITS).value > 0:
                    await asyncio.sleep(0.01)
            as_usual[0] += 100
            workers.append(started(directory, Board(shared, place)))
            tasks.append(asyncio.create_task(workers[-1].watch()))
        async with asyncio.timeout(30):
            while not all(each.board.cell(metrics.POLICY_WAITS).value > 0.2 for each in workers):
                await asyncio.sleep(0.01)
        assert levels() == {("otp",)}
        file.write(FLOORS[1].replace("otp", "aes"))
    async with asyncio.timeout(30):
        while levels() != {("aes",)}:
            await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_what_changes_while_a_process_that_starts_reads_it_is_an_edit(
    directory: Path, as_usual: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = edited(directory, as_usual)()
    read = PolicyFolder.read

    def edited_meanwhile(self: PolicyFolder, *of: Any) -> PolicySet:
        monkeypatch.setattr(PolicyFolder, "read", read)
        found = read(self, *of)
        write(directory, {"floors.toml": FLOORS[0]})
        return found

    write(directory, {"default.toml": CLEAR})
    monkeypatch.setattr(PolicyFolder, "read", edited_meanwhile)
    assert edited(directory, as_usual)().version == before.version


def test_a_file_that_has_just_vanished_is_not_gone_for_a_process_that_starts(
    directory: Path, as_usual: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    edited(directory, as_usual)
    monkeypatch.setattr(starting, "time_ns", lambda: time.time_ns() + 10**9)  # a second after each change
    (directory / "bob.example" / "x.toml").rename(directory / "bob.example" / "x.toml~")
    policies = started(directory)
    assert policies().decide("", "x@bob.example").levels == ("pqc",)
    monkeypatch.setattr(starting, "time_ns", lambda: time.time_ns() + 3 * 10**9)
    assert started(directory)().decide("", "x@bob.example").levels == ("aes",)


# --- a day passes -------------------------------------------------------------------------------------------------

TODAY = date(2030, 1, 1)
ENDING = f'levels = ["otp"]\npeer = "bob"\nuntil = {TODAY}\n'
TEST = 'test = [{ sender = "a@a.example", recipient = "x@audit.example", expect = "otp" }]\n'


@pytest.fixture(name="ending")
def _ending(directory: Path) -> Path:
    """A file ends today, and a test expects it for ever."""
    return write(directory, {"audit.example.toml": ENDING, "tests.toml": TEST})


def test_a_set_whose_test_fails_on_a_new_day_serves_in_a_process_that_starts(ending: Path) -> None:
    with on_day(TODAY):
        before = started(ending)()
    with on_day(TODAY + timedelta(days=1)):
        for broken in (False, True):
            if broken:
                write(ending, {"default.toml": BROKEN})
            policies = started(ending)
            assert policies().version == before.version
            assert "tests.toml:1: " in policies.failing[0]
            assert "expected otp, and it is refused" in policies.failing[0]
            assert bool(policies.problems) == broken
            assert counted(policies.board, metrics.POLICY_TESTS_FAILING) == 1


async def test_a_test_that_fails_on_a_new_day_is_a_condition_while_the_relay_runs(
    ending: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = [TODAY]
    for module in (policy_reload, policy_settings):
        monkeypatch.setattr(module, "today", lambda: day[0])
    policies = started(ending)
    task = asyncio.create_task(policies.watch())
    with capture_logs() as logs:
        day[0] += timedelta(days=1)
        async with asyncio.timeout(30):
            while not (policies.failing and counted(policies.board, metrics.POLICY_TESTS_FAILING)):
                await asyncio.sleep(0.01)
        assert policies.problems == ()
        write(ending, {"tests.toml": TEST.replace("otp", "refused")})
        async with asyncio.timeout(30):
            while policies.failing or counted(policies.board, metrics.POLICY_TESTS_FAILING):
                await asyncio.sleep(0.01)
    assert "tests.toml:1: " in next(each for each in logs if each["event"] == "policy_tests_fail")["tests"][0]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
