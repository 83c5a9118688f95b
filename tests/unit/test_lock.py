"""The lock files agree with pyproject.toml and with each other, and an environment is made anew when one changes.
Standard: pip's hash-checking mode (PEP 440 versions, PEP 508 markers); `deploy/lock` renews them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
LOCKS = ("build.lock", "requirements.lock", "requirements-dev.lock", "release.lock")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
RENEW = "renew it with deploy/lock"


@cache
def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _entries(lock: str) -> Iterator[tuple[Requirement, tuple[str, ...]]]:
    """Each pinned package, and the hashes of its files."""
    text = (DEPLOY / lock).read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement, *hashes = line.split(" --hash=")
            yield Requirement(requirement.strip()), tuple(each.strip() for each in hashes)


def _wanted(lock: str) -> list[Requirement]:
    """What pyproject.toml asks for that has to be in this lock file."""
    project = _project()["project"]
    extras = project["optional-dependencies"]
    texts = {
        "build.lock": _project()["build-system"]["requires"],
        "requirements.lock": [*project["dependencies"], *extras["postgresql"], *extras["imap"]],
        "requirements-dev.lock": [*project["dependencies"], *extras["dev"]],
        "release.lock": ["cyclonedx-bom"],
    }
    return [Requirement(text) for text in texts[lock]]


def _environment(python: str) -> dict[str, str]:
    here = {name: str(value) for name, value in default_environment().items()}
    return here | {
        "python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux", "platform_system": "Linux",
        "platform_machine": "x86_64", "implementation_name": "cpython", "platform_python_implementation": "CPython",
    }  # fmt: skip


def _applies(requirement: Requirement, python: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(_environment(python))


def _pins(lock: str, python: str) -> dict[str, str]:
    """The one release of each package that is taken under this Python."""
    pins: dict[str, str] = {}
    for requirement, _ in _entries(lock):
        if _applies(requirement, python):
            [specifier] = requirement.specifier
            assert specifier.operator == "=="
            assert pins.setdefault(canonicalize_name(requirement.name), specifier.version) == specifier.version
    return pins


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", LOCKS)
def test_every_range_of_pyproject_holds_the_release_that_is_locked(lock: str, python: str) -> None:
    pins = _pins(lock, python)
    for requirement in _wanted(lock):
        if _applies(requirement, python):
            version = pins.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement.name} is not in {lock}: {RENEW}"
            assert version in requirement.specifier, f"{requirement} is not met by {version} in {lock}: {RENEW}"


@pytest.mark.parametrize("python", PYTHONS)
def test_the_tests_run_with_what_the_relay_runs_with(python: str) -> None:
    assert _pins("requirements.lock", python).items() <= _pins("requirements-dev.lock", python).items()
    both = dict(_entries("requirements-dev.lock"))
    assert all(both[requirement] == hashes for requirement, hashes in _entries("requirements.lock"))


@pytest.mark.parametrize("lock", LOCKS)
def test_every_file_has_a_hash_and_nothing_else_is_said(lock: str) -> None:
    """No index, no address and no path: where the files come from is for the installer to say."""
    entries = list(_entries(lock))
    assert entries
    for requirement, hashes in entries:
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), requirement
        assert requirement.url is None
    text = (DEPLOY / lock).read_text()
    assert not re.search(r"://|--index|--find-links|--extra|file:|@ |(?<![\w.])/", text.replace("deploy/", ""))


def test_what_comes_as_source_can_be_built_with_what_is_locked() -> None:
    """pip would fetch what builds a package from anywhere; hatchling wants editables, and setuptools needs no wheel."""
    assert {"hatchling", "editables", "setuptools"} <= set(_pins("build.lock", PYTHONS[0]))


@pytest.mark.parametrize("changed", ["pyproject.toml", "deploy/build.lock", "deploy/requirements.lock"])
def test_an_environment_is_made_anew_when_what_it_was_made_of_changes(tmp_path: Path, changed: str) -> None:
    (tmp_path / "deploy").mkdir()
    for name in ("pyproject.toml", "deploy/environment", *(f"deploy/{lock}" for lock in LOCKS)):
        shutil.copy(ROOT / name, tmp_path / name)

    def made_for() -> str:
        script = f'root={tmp_path}; python={sys.executable}; . "$root/deploy/environment"; made_for requirements.lock'
        return subprocess.run(["sh", "-euc", script], capture_output=True, text=True, check=True).stdout

    before = made_for()
    assert made_for() == before != ""
    with (tmp_path / changed).open("a") as file:
        file.write("# changed\n")
    assert made_for() != before


def test_an_environment_is_installed_from_the_lock_files_alone(tmp_path: Path) -> None:
    """Every call of pip is one that checks hashes, or one that fetches nothing."""
    (tmp_path / "bin").mkdir()
    said = tmp_path / "said"
    program = tmp_path / "bin" / "python"
    program.write_text(f'#!/bin/sh\necho "$*" >>{said}\n')
    program.chmod(0o755)
    script = (
        f'root={ROOT}; . "$root/deploy/environment"; install_locked {tmp_path} requirements.lock --editable "$root"'
    )
    subprocess.run(["sh", "-euc", script], check=True)
    calls = [call for call in said.read_text().splitlines() if call.startswith("-I -m pip ")]
    assert len(calls) == 3
    for call, lock in zip(calls, ("build.lock", "requirements.lock"), strict=False):
        assert "--require-hashes" in call
        assert call.endswith(f"--requirement {DEPLOY / lock}")
    assert "--no-build-isolation" in calls[1]
    assert "--no-deps --no-build-isolation --editable" in calls[2]


def test_making_an_environment_says_what_comes_and_ends_with_what_failed(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "python"
    said = ["Collecting aiohttp==3.14.5 (from -r x)", "  Downloading aiohttp", "Installing collected packages: aiohttp"]
    script = f'root={ROOT}; FAILED=FAILED; . "$root/deploy/environment"; install_locked {tmp_path} requirements.lock x'

    def run(then: str) -> subprocess.CompletedProcess[str]:
        program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in said) + then)
        program.chmod(0o755)
        return subprocess.run(["sh", "-euc", script], capture_output=True, text=True, check=False)

    well = run("exit 0\n")
    assert (well.returncode, well.stdout) == (0, "")
    lines = well.stderr.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "fetching what builds packages ...",
        "fetching the packages in deploy/requirements.lock, and checking their hashes ...",
        "installing the relay ...",
    ]
    assert lines.count("  aiohttp==3.14.5") == lines.count("  putting them in place ...") == 3
    badly = run("echo 'no such file' >&2; exit 1\n")
    assert badly.returncode == 1
    assert "no such file" in badly.stderr.splitlines()
    assert badly.stderr.endswith("FAILED: the Python packages could not be installed; is there a network?\n")


_SAID_OTHERWISE = {
    "aiohappyeyeballs": "PSF-2.0", "aiosignal": "Apache-2.0", "dkimpy": "Zlib", "kilter-protocol": "MPL-2.0",
    "liboqs-python": "MIT", "markdown-it-py": "MIT", "mdurl": "MIT", "uvloop": "MIT OR Apache-2.0",
}  # fmt: skip
"""Packages that name their licence in words of their own; these were read in the files of each release."""


def test_the_list_of_licences_has_each_package_that_is_installed_and_what_it_says_of_itself() -> None:
    _, _, listed = (DEPLOY / "LICENSES.md").read_text().partition("(SPDX):\n")
    lines = re.findall(r"^- ([^:]+): ((?:[a-z0-9-]+(?:,\s+)?)+)\n", listed, re.MULTILINE)
    pairs = [(name, licence) for licence, names in lines for name in re.split(r",\s+", names)]
    table = dict(pairs)
    assert len(table) == len(pairs)
    wanted = {canonicalize_name(each.name) for each, _ in _entries("requirements.lock")} | {"liboqs-python"}
    assert set(table) == wanted
    for name, licence in table.items():
        said = metadata(name).json
        assert licence == _SAID_OTHERWISE.get(name, said.get("license_expression") or said.get("license")), name
