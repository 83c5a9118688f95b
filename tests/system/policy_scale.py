"""How edits of many policy files disturb a relay: `python -m tests.system.policy_scale [FILES]`, outside the suite.
It prints how soon edits count, how long the event loop stood still meanwhile, and what an idle watch costs.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
import uvloop

from relay.audit.chain import Chain
from relay.audit.entries import AddressHash
from relay.audit.policies import PolicyRecords
from relay.audit.policy_places import newest_first
from relay.audit.writing import Audit
from relay.policy.kept import KeptSets
from relay.policy.last_good import LastGood
from relay.policy.load import PolicyFolder
from relay.policy.reload import PoliciesInForce
from tests.bench import policy as bench

TICK_S = 0.001
IDLE_S = 60.0
TARGETS = (
    "of 50,000 an edit counts within 4 s, a swapped directory in 10 s, no stall of 50 ms, idle under 0.5 % of a core"
)


async def main(files: int) -> None:
    """Writes the files twice, measures, and leaves nothing behind."""
    print(f"{files:,} files; {TARGETS}")  # noqa: T201
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        for each in ("one", "two"):
            (top / each).mkdir()
            bench._write(top / each, files, random.Random(each))
        shutil.copytree(top / "one", top / "same")
        link = top / "policies"
        link.symlink_to("one")
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
        began = time.perf_counter()
        peers = {"bob": ["bob.example"]}
        last_good = LastGood(KeptSets(top / "sets.db"))
        policies = PoliciesInForce(link, peers, last_good=last_good)
        print(f"{'first reading':<44} {time.perf_counter() - began:8.2f} s")  # noqa: T201
        task = asyncio.create_task(policies.watch())
        audit = Audit(Chain(top / "audit"), AddressHash(None))
        records = PolicyRecords(audit, last_good, lambda directory: PolicyFolder(directory, peers))
        recording = asyncio.create_task(records.keep_up())
        await _settled(policies)
        await _measured("idle", lambda: asyncio.sleep(IDLE_S))
        await _measured("one file edited", lambda: _counts(policies, top / "audit", lambda: _edit(link, 1)))
        await _measured("2,000 files, sed -i", lambda: _counts(policies, top / "audit", lambda: _sed(link, files)))
        await _measured(
            "a new directory of one domain", lambda: _counts(policies, top / "audit", lambda: _new_domain(link))
        )
        await _measured(
            "link swapped, the same texts and one edit",
            lambda: _counts(policies, top / "audit", lambda: _swap(top, "same")),
        )
        await _measured(
            "link swapped, all files other ones", lambda: _counts(policies, top / "audit", lambda: _swap(top, "two"))
        )
        await asyncio.sleep(2)
        await _measured("what was replaced is let go", lambda: _released(policies))
        for running in (task, recording):
            running.cancel()
        await asyncio.gather(task, recording, return_exceptions=True)
        await audit.close()
        for line in newest_first(top / "audit"):
            print(f"recorded: {line['way']}, compared: {line['compared']}, weaker: {line['weaker']}")  # noqa: T201


async def _settled(policies: PoliciesInForce) -> None:
    """Until the watch has been set up and has looked at everything."""
    while policies._look_at < 0 or policies._waits_since is not None:
        await asyncio.sleep(0.1)


async def _measured(what: str, work: Callable[[], Awaitable[float | None]]) -> None:
    """Runs it while a task looks every millisecond whether the loop is still there."""
    worst = busy = 0.0
    over = False

    async def look() -> None:
        nonlocal worst, busy
        while not over:
            before, cpu_before = time.perf_counter(), time.process_time()
            await asyncio.sleep(TICK_S)
            late = time.perf_counter() - before - TICK_S
            worst = max(worst, late)
            # Where other processes had the processor, this one did not use any of it.
            busy = max(busy, min(late, time.process_time() - cpu_before))

    looking = asyncio.create_task(look()) if what != "idle" else None
    cpu, began = time.process_time(), time.perf_counter()
    counted = await work()
    took = time.perf_counter() - began if counted is None else counted
    cpu = time.process_time() - cpu
    over = True
    if looking is None:
        print(f"{what:<44} {100 * cpu / took:8.2f} % of a core")  # noqa: T201
    else:
        await looking
        stood = f"the loop stood for {worst * 1e3:6.1f} ms at most, {busy * 1e3:5.1f} ms of it by this process"
        print(f"{what:<44} {took:8.2f} s, {cpu:6.2f} s of CPU, {stood}")  # noqa: T201


async def _counts(policies: PoliciesInForce, records: Path, edit: Callable[[], None]) -> float:
    """Seconds from the end of the edit, which is another process's work, until it is in force; then it is recorded."""
    before = policies().version
    await asyncio.to_thread(edit)
    began = time.perf_counter()
    while policies().version == before and not policies.problems:
        await asyncio.sleep(TICK_S)
    assert not policies.problems, policies.problems[:3]
    counts = time.perf_counter() - began
    while await asyncio.to_thread(_recorded, records) != policies().version:
        await asyncio.sleep(10 * TICK_S)
    return counts


def _recorded(directory: Path) -> str:
    return str(next(newest_first(directory))["version"])


def _edit(link: Path, number: int) -> None:
    (link / f"d{number}.example.toml").write_text(f'levels = ["pqc+aes", "pqc"]\n# edit {number}\n')


def _sed(link: Path, files: int) -> None:
    names = [f"d{number}.example.toml" for number in range(min(2000, files // 10))]
    subprocess.run(["sed", "-i", "s/^# .*/# edited/", *names], cwd=link, check=True)


def _new_domain(link: Path) -> None:
    (link / "new.example").mkdir()
    (link / "new.example" / "x.toml").write_text('levels = ["pqc+aes", "pqc"]\n')


def _swap(top: Path, to: str) -> None:
    _edit(top / to, 2)
    (top / "next").symlink_to(to)
    (top / "next").replace(top / "policies")


async def _released(policies: PoliciesInForce) -> None:
    def release() -> None:
        while policies._folder.release():
            time.sleep(0.001)

    await asyncio.to_thread(release)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.system.policy_scale", description=__doc__)
    parser.add_argument("files", nargs="?", type=int, default=bench.FULL_FILES, help="policy files (%(default)s)")
    uvloop.run(main(parser.parse_args().files))
