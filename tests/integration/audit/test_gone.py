"""Files of the record that go while several processes add to it: what comes next has the next number, and is whole.
Standard: deploy/AUDIT.md; what is missing shows in the numbers, and what the relay wrote is never taken for a change.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings, strategies as st
from structlog.testing import LogCapture

from relay.audit.chain import Chain
from relay.audit.entries import event_members
from relay.audit.reading import records
from relay.audit.verifying import verify
from relay.kme import DevelopmentKMEs
from tests.integration.audit.test_records import message_no, until
from tests.testlib.identities import Identities
from tests.testlib.relay_command import workers_of
from tests.testlib.sink import Sink
from tests.testlib.sites import RelayProcess, make_site, relay_process
from tests.testlib.submit import submit

CHANGED = "one of them was changed"


def add(chain: Chain, number: int = 1) -> None:
    for _ in range(number):
        chain.append([event_members("test", {})], flush=False)


def numbers(directory: Path) -> list[int]:
    return [record["number"] for record in records(directory)]


def problems(directory: Path) -> str:
    """What `verify` says."""
    return "\n".join(verify(directory).problems)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A record of 5 lines, of a relay that has ended."""
    chain = Chain(tmp_path / "audit")
    add(chain, 5)
    chain.close()
    return tmp_path / "audit"


@pytest.fixture
def workers(directory: Path) -> Iterator[tuple[Chain, Chain]]:
    """Two processes of a relay that has just started."""
    busy, idle = Chain(directory), Chain(directory)
    for chain in (busy, idle):
        chain.look()
    yield busy, idle
    for chain in (busy, idle):
        chain.close()


def remove_all(directory: Path) -> None:
    shutil.rmtree(directory)


def remove_files(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()


def cut(directory: Path) -> None:
    os.truncate(max(directory.iterdir()), 0)


GONE = pytest.mark.parametrize("go", [remove_all, remove_files, cut])


@GONE
def test_the_first_record_after_a_start_has_the_next_number_though_all_files_are_gone(
    directory: Path, workers: tuple[Chain, Chain], log: LogCapture, go: Callable[[Path], None]
) -> None:
    path = str(max(directory.iterdir()))
    go(directory)
    add(workers[1], 2)
    assert numbers(directory) == [6, 7]
    [told] = [each for each in log.entries if each["event"] == "audit_file_gone"]
    assert (told["file"], told["last"]) == (path, 5)
    assert "no record has those before as removed" in problems(directory)
    assert CHANGED not in problems(directory)


@pytest.mark.parametrize("go", [remove_all, remove_files])
@pytest.mark.parametrize("first", [0, 1])
def test_a_process_that_has_added_nothing_yet_goes_on_behind_what_others_added_to_the_file_that_is_gone(
    directory: Path, workers: tuple[Chain, Chain], go: Callable[[Path], None], first: int
) -> None:
    add(workers[0], 3)
    go(directory)
    for chain in (workers[first], workers[1 - first]) * 2:
        add(chain)
    assert numbers(directory) == [9, 10, 11, 12]
    [problem] = verify(directory).problems
    assert "begins with number 9, and no record has those before as removed" in problem


def test_what_was_cut_off_before_another_process_could_see_it_is_missing(
    directory: Path, workers: tuple[Chain, Chain]
) -> None:
    busy, idle = workers
    add(busy, 3)
    cut(directory)
    for chain in (idle, busy) * 2:
        add(chain)
    assert numbers(directory) == [6, 9, 10, 11]
    assert "number 9, and 7 is expected: 7 to 8 are missing" in problems(directory)
    assert CHANGED not in problems(directory)


def test_what_is_left_when_the_newest_file_alone_is_gone_is_added_to_by_nobody(
    directory: Path, workers: tuple[Chain, Chain]
) -> None:
    max(directory.iterdir()).chmod(0o400)
    add(workers[0], 2)
    max(directory.iterdir()).unlink()
    for chain in workers * 2:
        add(chain)
    assert numbers(directory) == [1, 2, 3, 4, 5, 8, 9, 10, 11]
    [problem] = verify(directory).problems
    assert "number 8, and 6 is expected: 6 to 7 are missing" in problem


def test_a_file_that_is_put_back_while_all_write_makes_the_record_whole(
    directory: Path, workers: tuple[Chain, Chain], tmp_path: Path
) -> None:
    busy, idle = workers
    path = max(directory.iterdir())
    add(busy, 2)
    directory.rename(tmp_path / "moved")
    add(busy, 2)
    (tmp_path / "moved" / path.name).rename(path)
    for chain in (idle, busy) * 2:
        add(chain)
    assert verify(directory).problems == ()
    assert numbers(directory) == [*range(1, 14)]


@pytest.mark.parametrize(
    ("first", "there", "said"),
    [
        (0, [10, 11, 12, 13], "number 10, and 8 is expected: 8 to 9 are missing"),
        (1, [8, 10, 11, 12], "number 10, and 9 is expected: 9 is missing"),
    ],
)
def test_a_directory_that_comes_back_in_the_place_of_the_new_one_lacks_what_stood_there(
    directory: Path, workers: tuple[Chain, Chain], tmp_path: Path, first: int, there: list[int], said: str
) -> None:
    add(workers[0], 2)
    directory.rename(tmp_path / "moved")
    add(workers[0], 2)
    shutil.rmtree(directory)
    (tmp_path / "moved").rename(directory)
    for chain in (workers[first], workers[1 - first]) * 2:
        add(chain)
    [problem] = verify(directory).problems
    assert said in problem
    assert numbers(directory) == [*range(1, 8), *there]


def test_of_two_that_know_of_different_ends_each_adds_to_no_file_that_ends_before_its_own(directory: Path) -> None:
    """A person's command knows of nothing."""
    relay, command = Chain(directory), Chain(directory)
    relay.look()
    remove_files(directory)
    add(command)
    for chain in (relay, command) * 2:
        add(chain)
    assert numbers(directory) == [1, 6, 7, 8, 9]
    [problem] = verify(directory).problems
    assert "number 6, and 2 is expected: 2 to 5 are missing" in problem


def test_a_process_that_adds_nothing_learns_of_the_next_file_when_it_looks_again(
    directory: Path, workers: tuple[Chain, Chain]
) -> None:
    busy, idle = workers
    max(directory.iterdir()).chmod(0o400)
    add(busy, 2)
    idle.look()
    add(busy, 2)
    remove_all(directory)
    add(idle)
    add(busy)
    assert numbers(directory) == [10, 11]


def move_away(directory: Path) -> None:
    if not (directory.parent / "moved").exists():
        directory.rename(directory.parent / "moved")


def merge(directory: Path) -> None:
    """What was moved away lies beside what came after it; no name is taken."""
    for path in (directory.parent / "moved").glob("*.jsonl"):
        directory.mkdir(exist_ok=True)
        assert not (directory / path.name).exists()
        path.rename(directory / path.name)
    shutil.rmtree(directory.parent / "moved", ignore_errors=True)


def replace(directory: Path) -> None:
    if (directory.parent / "moved").exists():
        shutil.rmtree(directory, ignore_errors=True)
        (directory.parent / "moved").rename(directory)


def remove_newest(directory: Path) -> None:
    for path in sorted(directory.glob("*.jsonl"))[-1:]:
        path.unlink()


OPERATIONS = (0, 0, 1, 1, remove_all, remove_files, remove_newest, move_away, merge, replace)


@given(operations=st.lists(st.sampled_from(OPERATIONS), max_size=14))
@settings(max_examples=60, deadline=None)
def test_whatever_files_go_and_come_back_a_loss_is_found_and_nothing_else_is(
    operations: list[int | Callable[[Path], None]],
) -> None:
    with TemporaryDirectory() as work:
        directory = Path(work) / "audit"
        chains = Chain(directory, 300), Chain(directory, 300)
        written: list[str] = []
        for operation in (0, 0, *operations, 0, 1):
            if isinstance(operation, int):
                written.append(chains[operation].append([b'"count": %d' % len(written)], flush=False).head)
                for chain in chains:
                    chain.look()
            elif directory.exists() or operation in (merge, replace):
                operation(directory)
        found = verify(directory)
        lines = [line for path in directory.glob("*.jsonl") for line in path.read_bytes().splitlines()]
        lost = set(written) - {hashlib.sha256(line).hexdigest() for line in lines}
        assert bool(found.problems) == bool(lost)
        assert CHANGED not in problems(directory)
        for chain in chains:
            chain.close()


async def test_a_record_that_is_removed_while_one_worker_has_written_and_one_has_not_goes_on_as_one_chain(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, identities: Identities
) -> None:
    alice = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        identities=identities, policies={"bob.example.toml": 'levels = ["aes"]\n'},
    )  # fmt: skip
    alice.set_workers(2)
    directory = alice.config.audit_directory
    async with relay_process(alice):
        pass
    async with relay_process(alice) as relay:
        for stopped in (0, 1):  # what each of the two takes while the other one cannot
            begun = verify(directory).number
            for each in range(2):
                await taken_without(workers_of(relay.process.pid)[stopped], relay, message_no(2 * stopped + each))
            await until(lambda begun=begun: verify(directory).number >= begun + 2)
            if not stopped:
                number = verify(directory).number
                shutil.rmtree(directory)
                directory.mkdir()
        log = relay.log
    assert numbers(directory)[0] > number
    assert "audit_file_gone" in log
    [problem] = verify(directory).problems
    assert "no record has those before as removed" in problem


async def taken_without(other: int, relay: RelayProcess, message: bytes) -> None:
    """Another process takes the mail; this one may hold a lock when it is stopped, so it goes on and is stopped again."""
    code = 0
    while code != 250:
        os.kill(other, signal.SIGSTOP)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(10):
                    code = (await submit(relay.addresses["outgoing"], message)).code
        finally:
            os.kill(other, signal.SIGCONT)
