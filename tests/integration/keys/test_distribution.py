"""The key clients as a distribution of their own, installed beside the relay with nothing but what they need.
Standard: PEP 517 (both builds), PEP 621 (what it needs); no network: what is needed is taken from this environment.
"""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import zipfile
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
EXAMPLE = (ROOT / "deploy/keys/example.py").read_text()
"""The usage example of the page for those who come from the QuMail document."""
FASTAPI = """
import sys, types
class FastAPI:
    def __init__(self, lifespan):
        self.lifespan, self.routes = lifespan, {}
    def get(self, path):
        return lambda call: self.routes.setdefault(path, call)
sys.modules["fastapi"] = types.SimpleNamespace(FastAPI=FastAPI)
"""
"""Stands in for FastAPI, which is not installed here: what the example uses of it."""
SERVED = """
import asyncio
async def serve():
    async with app.lifespan(app):
        print(*{(await app.routes["/key"]())["key_ID"] for _ in range(3)}, sep="\\n")
    print(km1_client.accounts.totals()["in_pool"])
asyncio.run(serve())
"""


def _needed(name: str) -> Iterator[str]:
    """The names of this and all that it needs."""
    yield canonicalize_name(name)
    for each in map(Requirement, distribution(name).requires or []):
        if each.marker is None or each.marker.evaluate({"extra": ""}):
            yield from _needed(each.name)


def _run(where: Path, *command: str | Path) -> str:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of an environment with both wheels, the library's of its source distribution, and what the library needs."""
    directory = tmp_path_factory.mktemp("alone")
    _run(ROOT / "deploy/keys", sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", directory)
    _run(ROOT, sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory)
    [source] = directory.glob("*.tar.gz")
    alone = ("--no-index", "--no-deps", "--no-cache-dir")
    _run(directory, sys.executable, "-m", "pip", "wheel", *alone, "--no-build-isolation", source)
    _run(directory, sys.executable, "-m", "venv", "--without-pip", "env")
    mine = directory / "env/bin/python"
    packages = Path(_run(directory, mine, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for name in {each for wanted in ("aiohttp", "cryptography", "structlog", "yarl") for each in _needed(wanted)}:
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            (packages / top).symlink_to(Path(str(found.locate_file(top))))
    wheels = sorted(directory.glob("*.whl"))
    _run(directory, sys.executable, "-m", "pip", "--python", mine, "install", *alone, "--no-compile", *wheels)
    return mine


@pytest.fixture
async def kmes(python: Path, tmp_path: Path) -> AsyncIterator[tuple[str, str]]:
    """The URLs of the library's KMEs for trying, which run over tmp_path."""
    servers = await asyncio.create_subprocess_exec(
        *(python, "-I", "-m", "quantum_keys.kme", "--port", "0", "--port", "0", "--state", tmp_path),
        env={"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "home")},
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
    assert list(PROGRAMS) == ["alice.py", "bob.py", "rotation.py", "failover.py", "metrics.py", "options.py", "app.py"]

    async def run(name: str, *arguments: str, before: str = "", after: str = "") -> str:
        program = f"{before}{PROGRAMS.get(name, EXAMPLE)}{after}".replace(
            "https://kme-1.alice.example", "https://localhost:1"
        )
        for documented, url in zip(("https://localhost:13000", "https://localhost:14000"), kmes, strict=True):
            program = program.replace(documented, url)
        running = await asyncio.create_subprocess_exec(
            python,
            *("-I", "-c", program, *arguments),
            env={"HOME": str(tmp_path), "QUMAIL_KME_STATE": str(tmp_path)},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await running.communicate()
        assert err == b""
        return out.decode()

    key_ID = (await run("alice.py")).strip()
    await run("bob.py", key_ID)
    assert (tmp_path / "alice.key").read_bytes() == (tmp_path / "bob.key").read_bytes() != b""
    assert await run("rotation.py") == "2 keys for 6 messages\n"
    assert await run("failover.py") == "kme-1 does not answer\nkme-2 works\n3 keys\n"
    counted = (await run("metrics.py")).splitlines()
    assert "qumail_keys_total kme 1 issued 4.0" in counted
    assert counted[-1] == "{'issued': 4, 'used': 4, 'burnt': 0, 'expired': 0, 'in_pool': 0}"
    assert (await run("example.py")).endswith("the same key at both sides: True\n")
    assert await run("options.py") == f"{kmes[0]} 3\n"
    *served, in_pool = (await run("app.py", before=FASTAPI, after=SERVED)).splitlines()
    assert (len(served), in_pool) == (3, "0")


def test_it_has_the_clients_and_no_mail_and_loads_nothing_of_the_relay(python: Path, tmp_path: Path) -> None:
    script = (
        "import importlib, pkgutil, sys, quantum_keys\n"
        "print([name for name in quantum_keys.__all__ if not hasattr(quantum_keys, name)])\n"
        "print(sorted(each.name for each in pkgutil.iter_modules(quantum_keys.__path__) if each.ispkg))\n"
        "for each in pkgutil.walk_packages(quantum_keys.__path__, 'quantum_keys.'):\n"
        "    importlib.import_module(each.name)\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'relay'])\n"
    )
    small = ["counting", "files", "formats", "kme", "runtime"]
    assert _run(tmp_path, python, "-I", "-c", script) == f"[]\n{small}\n[]\n"


def test_it_stands_beside_the_relay_and_shares_no_file_with_it(python: Path) -> None:
    ours, relays = (
        {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
        for wheel in sorted(python.parents[2].glob("*.whl"), key=lambda each: each.name.startswith("qumail"))
    )
    assert ours
    assert relays
    assert not {name.split("/")[0] for name in ours} & {name.split("/")[0] for name in relays}


def test_the_command_of_the_page_makes_the_same_package_as_the_source_distribution(
    python: Path, tmp_path: Path
) -> None:
    [command] = re.findall(r"^python -m pip (wheel .*)$", PAGE, re.MULTILINE)
    here = ("--no-index", "--no-build-isolation", "--no-cache-dir")
    _run(ROOT, sys.executable, "-m", "pip", *command.replace("-w dist", f"-w {tmp_path}").split(), *here)
    [of_source] = python.parents[2].glob("quantum_keys-*.whl")
    [made] = tmp_path.glob("*.whl")
    assert zipfile.ZipFile(made).namelist() == zipfile.ZipFile(of_source).namelist()


def test_it_needs_what_the_relay_takes_of_it() -> None:
    versions = [
        re.findall(
            r'"((?:aiohttp|cryptography|structlog|yarl)[<>=][^"]*)"', (ROOT / place / "pyproject.toml").read_text()
        )
        for place in ("", "deploy/keys")
    ]
    assert sorted(versions[0]) == sorted(versions[1])
