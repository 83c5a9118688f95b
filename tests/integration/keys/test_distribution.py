"""The key clients as a distribution of their own, installed with nothing but what they need: the programs of their page.
Standard: PEP 517 (the build), PEP 621 (what it needs); no network: what is needed is taken from this environment.
"""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import relay

ROOT = Path(relay.__file__).parent.parent
PAGE = (ROOT / "relay/keys/README.md").read_text()
PROGRAMS = dict(re.findall(r"```python\n# (\w+\.py).*?\n(.*?)```", PAGE, re.DOTALL))


def _needed(name: str) -> Iterator[str]:
    """The names of this and all that it needs."""
    yield canonicalize_name(name)
    for each in map(Requirement, distribution(name).requires or []):
        if each.marker is None or each.marker.evaluate({"extra": ""}):
            yield from _needed(each.name)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of an environment with the wheel, and what it needs, and nothing else."""
    directory = tmp_path_factory.mktemp("alone")

    def run(*command: str | Path, where: Path = directory) -> str:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory, where=ROOT / "deploy/keys")
    [wheel] = directory.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", "env")
    mine = directory / "env/bin/python"
    packages = Path(run(mine, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for name in {each for wanted in ("aiohttp", "cryptography", "structlog", "yarl") for each in _needed(wanted)}:
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            (packages / top).symlink_to(Path(str(found.locate_file(top))))
    run(sys.executable, "-m", "pip", "--python", mine, "install", "--no-index", "--no-cache-dir", wheel)
    return mine


@pytest.fixture
async def kmes(tmp_path: Path) -> AsyncIterator[tuple[str, str]]:
    """The URLs of development KMEs that run over tmp_path."""
    servers = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", "kme", "--port", "0", "--port", "0", "--state", str(tmp_path)),
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert servers.stdout is not None
        said = b""
        while b"NOT quantum" not in said:
            line = await servers.stdout.readline()
            assert line, "the servers have ended"
            said += line
        first, second = dict.fromkeys(re.findall(r"https://[\w.]+:\d+", said.decode()))
        yield first, second
    finally:
        servers.send_signal(signal.SIGTERM)
        await servers.wait()


async def test_the_programs_of_the_page_run_as_they_stand(python: Path, kmes: tuple[str, str], tmp_path: Path) -> None:
    assert list(PROGRAMS) == ["alice.py", "bob.py", "failover.py", "metrics.py"]

    async def run(name: str, *arguments: str) -> str:
        program = PROGRAMS[name].replace("https://kme-1.alice.example", "https://localhost:1")
        for documented, url in zip(("https://localhost:13000", "https://localhost:14000"), kmes, strict=True):
            program = program.replace(documented, url)
        running = await asyncio.create_subprocess_exec(
            python, "-I", "-c", program, *arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, err = await running.communicate()
        assert err == b""
        return out.decode()

    key_ID = (await run("alice.py")).strip()
    await run("bob.py", key_ID)
    assert (tmp_path / "alice.key").read_bytes() == (tmp_path / "bob.key").read_bytes() != b""
    assert await run("failover.py") == "kme-1 does not answer\nkme-2 works\n3 keys\n"
    counted = (await run("metrics.py")).splitlines()
    assert "qumail_keys_total kme 1 issued 4.0" in counted
    assert counted[-1] == "{'issued': 4, 'used': 4, 'burnt': 0, 'expired': 0, 'in_pool': 0}"


async def test_it_has_the_clients_and_no_mail(python: Path) -> None:
    script = (
        "import importlib.metadata, importlib.util, pkgutil, relay, relay.keys, relay.keys.development\n"
        "print(relay.keys.__file__.startswith(__import__('sys').prefix))\n"
        "print([name for name in relay.keys.__all__ if not hasattr(relay.keys, name)])\n"
        "print(sorted(each.name for each in pkgutil.iter_modules(relay.__path__)))\n"
        "[importlib.import_module(f'relay.keys.{each.name}') for each in pkgutil.iter_modules(relay.keys.__path__)]\n"
    )
    done = subprocess.run([python, "-I", "-c", script], capture_output=True, text=True, check=False)
    small = ["counting", "errors", "files", "formats", "keys", "runtime"]
    assert (done.stderr, done.stdout) == ("", f"True\n[]\n{small}\n")


def test_it_needs_what_the_relay_takes_of_it() -> None:
    versions = [
        re.findall(
            r'"((?:aiohttp|cryptography|structlog|yarl)[<>=][^"]*)"', (ROOT / place / "pyproject.toml").read_text()
        )
        for place in ("", "deploy/keys")
    ]
    assert sorted(versions[0]) == sorted(versions[1])
