"""The mail benchmark from outside: it ends, every kind of case has figures, and it leaves nothing behind.
No time and no speed is asserted, since the machine may be busy.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from click.testing import CliRunner

from relay.config.values import parse_address
from relay.errors import ConfigError
from relay.kme import DevelopmentKMEs
from tests.bench import servers, tools
from tests.bench.__main__ import bench
from tests.bench.cases import PARTS, WAYS, BenchWay
from tests.bench.figures import KEYS_RUN_OUT
from tests.bench.mail import Run
from tests.bench.processes import command, server
from tests.bench.report import show
from tests.bench.result import BenchmarkFailed
from tests.bench.traffic import MARKER, mails_of
from tests.testlib import mails
from tests.testlib.bench_command import run_bench
from tests.testlib.dovecot import requires_dovecot
from tests.testlib.identities import Identities
from tests.testlib.postfix import requires_postfix
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site
from tests.testlib.submit import submit

SOME = ("pass-through 4 KB", "aes 4 KB", "aes, LMTP 4 KB", "opening aes 4 KB", "sealed and opened 4 KB")


def _command(directory: Path, *options: str) -> tuple[list[str], dict[str, str]]:
    """The command, and its environment: temporary files under `directory`."""
    return [sys.executable, "-m", "tests.bench", *options], {**os.environ, "TMPDIR": str(directory)}


async def _bench(directory: Path, identities: Identities, *options: str) -> Any:
    """What `bench --quick --json -` says; nothing is left behind in `directory`."""
    status, complaint, shown = await run_bench(directory, identities, "--quick", "--json", "-", *options)
    assert status == 0, complaint
    assert not list(directory.iterdir())
    return json.loads(shown)


def _only(*names: str) -> list[str]:
    return [option for name in names for option in ("--only", name)]


async def test_each_direction_listener_and_part_is_measured_and_nothing_is_left_behind(
    tmp_path: Path, identities: Identities
) -> None:
    result = await _bench(tmp_path, identities, *_only(*SOME, "latency", "memory", "commands"))
    figures = result["figures"]
    for name in SOME:
        assert set(figures[name]) == {"mails/s", "CPU ms", "peak MB"}
        assert figures[name]["mails/s"][0] > 0
        assert figures[name]["peak MB"][0] > 1
    for name in ("sink", "pass-through", "sealing", "opening"):
        [middle], [worst] = figures[f"latency, {name}"]["p50 ms"], figures[f"latency, {name}"]["p99 ms"]
        assert 0 < middle <= worst
    assert figures["memory, idle"]["MB"][0] > figures["memory, idle, first process"]["MB"][0] > 1
    assert figures["memory, one 25 MB mail above idle"]["x size"][0] > 0
    assert figures["command, --help"]["s"][0] > 0
    assert "memory, kept above idle" in result["notes"]
    assert 0 <= result["taken"] <= 1
    [ratio] = [one for one in result["ratios"] if one["this"] == "aes 4 KB"]
    assert ratio["value"] == figures["aes 4 KB"]["mails/s"][0] / figures["pass-through 4 KB"]["mails/s"][0]


@pytest.mark.long
@requires_postfix
async def test_filters_and_milters_in_a_postfix_are_measured_beside_it(
    in_the_open: Path, identities: Identities
) -> None:
    ways = [way.name for way in WAYS if way.needs == ("Postfix",)]
    result = await _bench(in_the_open, identities, *_only(*(f"{way} 4 KB" for way in ways)))
    assert len(ways) == 5
    assert all(result["figures"][f"{way} 4 KB"]["mails/s"][0] > 0 for way in ways)


@pytest.mark.long
@requires_dovecot
async def test_mailboxes_are_opened_and_copied(in_the_open: Path, identities: Identities) -> None:
    figures = (await _bench(in_the_open, identities, *_only("imap")))["figures"]
    assert figures["IMAP, copied"]["s"][0] > 0
    assert "IMAP, opened" in figures


@pytest.fixture
def in_the_open() -> Iterator[Path]:
    """A directory into which the users of other servers get, which they may not below pytest's directories."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.long
async def test_it_is_said_at_which_level_and_size_the_keys_run_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(servers, "STOCK_OF_KEYS", 200_000)
    run = Run(("otp 4 KB", "otp 1 MB"), quick=True, progress=lambda *_: None)
    await run.measure()
    assert run.figures.notes == {"otp 1 MB": KEYS_RUN_OUT}, run.figures.faults
    assert run.figures.median("otp 4 KB", "mails/s")
    show(run.figures, "")
    assert f"otp 1 MB: {KEYS_RUN_OUT}" in capsys.readouterr().out


async def test_without_the_tools_of_postfix_python_sends_and_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "_SOURCE", None)
    run = Run(("pass-through 4 KB", "source to sink 4 KB"), quick=True, progress=lambda *_: None)
    await run.measure()
    assert run.figures.median("pass-through 4 KB", "mails/s")
    assert "not installed" in run.figures.notes["source to sink 4 KB"]


async def test_a_way_that_loses_its_protection_has_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in clear is never reported as the speed of sealing."""
    open_way = BenchWay("sealing", "open", "pass-through", "sealed")
    monkeypatch.setattr("tests.bench.mail.WAYS", (open_way,))
    run = Run(("open 4 KB",), quick=True, progress=lambda *_: None)
    await run.measure()
    assert not run.figures.rounds
    assert "16 mails were to arrive (sealed)" in run.figures.faults[0]


@pytest.mark.parametrize(
    ("number", "sigint"),
    [pytest.param(signal.SIGINT, signal.SIG_DFL, marks=pytest.mark.long), (signal.SIGTERM, signal.SIG_IGN)],
)
def test_when_interrupted_it_shows_what_it_knows_and_ends_all_that_it_started(
    tmp_path: Path, number: int, sigint: signal.Handlers
) -> None:
    """What a shell starts in the background ignores SIGINT, and SIGTERM still ends it."""
    command, environment = _command(tmp_path, "--quick", *_only("pass-through 4 KB", "memory"))
    before = partial(signal.signal, signal.SIGINT, sigint)
    bench = subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True, env=environment, preexec_fn=before)
    until = time.monotonic() + 100
    # The relay whose memory is measured starts when the figures of the other case are known.
    while not list(tmp_path.glob("*/alice-idle/ready")) and time.monotonic() < until:
        assert bench.poll() is None
        time.sleep(0.02)
    bench.send_signal(number)
    shown, complaint = bench.communicate(timeout=60)
    assert bench.returncode == 130
    assert "interrupted" in complaint
    assert "pass-through" in shown
    assert not list(tmp_path.iterdir())
    assert not [each for each in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _read(each)]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def test_what_cannot_be_measured_is_said_before_anything_is_started() -> None:
    unknown = CliRunner().invoke(bench, ["--only", "aes 3 KB"])
    assert unknown.exit_code == 2
    assert "aes 3 KB" in unknown.output
    nowhere = CliRunner().invoke(bench, ["--json", "/nowhere/run.json"])
    assert isinstance(nowhere.exception, ConfigError)
    listed = CliRunner().invoke(bench, ["--list"]).output
    assert all(way.name in listed for way in WAYS)
    assert all(f"{part}: " in listed for part in PARTS)


async def test_a_relay_that_serves_has_loaded_no_benchmark_and_no_development_kme(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    ready = tmp_path / "ready"
    serve = ["serve", "--config", str(site.config_file), "--ready-file", str(ready)]
    told = "import sys; from relay.cli import cli\ntry: cli.main(sys.argv[1:])\nfinally: print(*sys.modules)"
    with (tmp_path / "loaded").open("wb") as output:
        relay = await asyncio.create_subprocess_exec(sys.executable, "-c", told, *serve, stdout=output)
    async with asyncio.timeout(60):
        while not ready.exists():
            assert relay.returncode is None
            await asyncio.sleep(0.02)
        assert (await submit(parse_address(ready.read_text().split()[1]), mails.plain())).code == 250
        relay.terminate()
        await relay.wait()
    loaded = (tmp_path / "loaded").read_text().split()
    assert "relay.process.app" in loaded
    assert not [module for module in loaded if module.startswith(("tests.bench", "relay.kme", "matplotlib"))]


@pytest.mark.parametrize("size", [1_000, 1_001, 4_000, 4_077, 100_000])
def test_mails_have_their_size_and_need_no_dot_stuffing(size: int) -> None:
    mails = mails_of(size)
    first, second = next(mails), next(mails)
    assert len(first) == len(second) == size
    assert first != second
    assert MARKER in first
    assert b"\r\n." not in first
    assert first.count(b"\n") == first.count(b"\r") == first.count(b"\r\n")
    assert max(map(len, first.split(b"\r\n"))) <= 78
    assert first.endswith(b"\r\n")


async def test_a_process_that_does_not_start_is_reported(tmp_path: Path) -> None:
    nowhere = tmp_path / "ready"
    with pytest.raises(BenchmarkFailed, match=r"`serve` did not start: .*relay\.toml"):
        async with command(
            "serve", "--config", str(tmp_path / "relay.toml"), ready_file=nowhere, log_file=tmp_path / "log"
        ):
            pass
    with pytest.raises(BenchmarkFailed, match=r"tests\.bench\.result did not start"):
        async with server("tests.bench.result"):
            pass
