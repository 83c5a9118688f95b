"""What `pip install` and an index get: a wheel with the types in it, and metadata that an index takes.
Standard: PEP 561 (py.typed), PEP 621 and the core metadata; PyPI refuses classifiers that it does not know.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from trove_classifiers import classifiers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    directory = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [file] = directory.iterdir()
    return zipfile.ZipFile(file)


def test_the_wheel_has_all_of_the_relay_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert "relay/py.typed" in names
    files = [path for path in (ROOT / "relay").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    wanted = {str(path.relative_to(ROOT)) for path in files}
    # What `setup` does to Postfix.
    postfix = ROOT / "deploy" / "postfix"
    wanted |= {f"relay/postfix/fragments/{path.relative_to(postfix)}" for path in postfix.rglob("*") if path.is_file()}
    assert names == wanted


def test_an_index_takes_its_metadata(wheel: zipfile.ZipFile) -> None:
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    text = wheel.read(name).decode()
    metadata = Metadata.from_email(text, validate=True)
    assert metadata.name == "qumail-relay"
    assert Parser().parsestr(text)["Author"] == "QuMail Relay contributors"
    assert metadata.keywords
    assert "Typing :: Typed" in (metadata.classifiers or [])
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert set(metadata.classifiers or []) <= classifiers
    pythons = [each for each in metadata.classifiers or [] if each.startswith("Programming Language :: Python :: 3.")]
    assert f"Programming Language :: Python :: {wanted.removeprefix('>=')}" in pythons


def test_there_is_one_version() -> None:
    """`deploy/keys` is released with the relay."""
    files = (ROOT / "pyproject.toml", ROOT / "deploy/keys/pyproject.toml")
    assert len({tomllib.loads(file.read_text())["project"]["version"] for file in files}) == 1


def test_archive_and_wheel_are_the_same_bytes_again(tmp_path: Path) -> None:
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1764547200"}
    made = []
    for name in ("one", "two"):
        build = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path / name)]
        subprocess.run(build, cwd=ROOT, env=environment, check=True, capture_output=True)
        made.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert made[0] == made[1]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert sorted(name.rpartition("-")[2] for name in made[0]) == [f"{version}.tar.gz", "any.whl"]
