"""The mail benchmark from outside: it ends, its figures hang together, and it leaves nothing behind.
No time and no speed is asserted, since the machine may be busy.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from relay.bench.processes import command, server
from relay.bench.result import BenchmarkFailed
from relay.bench.traffic import MARKER, mails_of
from relay.config.values import parse_address
from relay.kme import DevelopmentKMEs
from tests.testlib import mails
from tests.testlib.postfix import requires_postfix
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site
from tests.testlib.submit import submit


def _bench(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, its temporary files under `directory`."""
    return subprocess.run(
        [sys.executable, "-m", "relay", "bench", "--quick", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={**os.environ, "TMPDIR": str(directory)},
    )


def test_a_quick_run_measures_both_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = _bench(tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    small, large = result["figures"]
    for figures in (small, large):
        relay, bare = figures["relay"], figures["pass_through"]
        assert len(relay["rounds"]) == len(bare["rounds"]) == 1
        assert relay["mails_per_s"] > 0
        assert relay["octets_per_s"] == relay["mails_per_s"] * figures["size"]
        assert figures["ratio"] == pytest.approx(relay["mails_per_s"] / bare["mails_per_s"])
    assert small["size"] < large["size"]
    assert result["keys"] >= result["sealed"] > 0
    assert result["machine"]["cores"] >= 1
    assert not list(tmp_path.iterdir())


@requires_postfix
def test_a_quick_run_with_postfix_measures_each_way_and_leaves_nothing_behind() -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)  # Postfix's own user must get in, which it may not below pytest's directories
        done = _bench(Path(name), "--milter", "--json")
        left = list(Path(name).iterdir())
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    for figures in result["figures"]:
        rounds = figures["rounds"]
        assert set(rounds) == {"postfix", "bare", "milter", "lmtp"}
        assert all(len(each) == 1 and each[0] > 0 for each in rounds.values())
        ratio = result["ratios"][figures["name"]]["milter"]
        assert ratio == pytest.approx(rounds["milter"][0] / rounds["postfix"][0])
    assert result["sealed"] > 0
    assert not left


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
    assert "relay.app" in loaded
    assert not [module for module in loaded if module.startswith(("relay.bench", "relay.kme"))]


@pytest.mark.parametrize("size", [1_000, 1_001, 4_000, 4_077, 100_000])
def test_mails_have_their_size_and_need_no_dot_stuffing(size: int) -> None:
    mails = mails_of(size)
    first, second = (b"".join(mails.mail(serial)) for serial in (1, 999_999_999_999))
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
    with pytest.raises(BenchmarkFailed, match=r"relay\.bench\.result did not start"):
        async with server("relay.bench.result"):
            pass
