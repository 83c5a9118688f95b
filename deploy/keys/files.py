"""Build hooks of hatchling: make the package `quantum_keys` of the relay's key clients and its KMEs for trying.
Standard: PEP 517. The source distribution has the package itself, so that a wheel is made of it without the relay.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

NAME = "quantum_keys"
HERE = Path(__file__).resolve().parent
RELAY = HERE.parents[1] / "relay"
READY = HERE / NAME
"""The package in a source distribution."""

BELOW = (
    *("errors.py", "py.typed"),
    *(
        f"files/{name}.py"
        for name in ("__init__", "accounts", "acl", "commands", "pem", "permissions", "rights", "stamps")
    ),
    *("formats/__init__.py", "formats/characters.py", "formats/unicode_14.txt"),
    *("runtime/__init__.py", "runtime/aio.py"),
    *("counting/__init__.py", "counting/key_metrics.py", "counting/metric.py"),
)
"""What the clients stand on."""
OF_THE_RELAY = {"build.py"}
"""What reads relay.toml."""

RENAMED = (
    (r"(?<![\w-])relay([./])keys\b", rf"{NAME}"),
    (r"(?<![\w-])relay([./])(?=(?:errors|files|formats|runtime|counting|kme)\b)", rf"{NAME}\1"),
    (r"`qumail-relay kme`", f"`python -m {NAME}.kme`"),
)
"""The same names in the package, in code and in texts."""


def write_package(target: Path) -> None:
    """Writes the package into the directory `target`."""
    sources = {path: path.relative_to(RELAY) for name in BELOW for path in [RELAY / name]}
    sources |= {path: path.relative_to(RELAY) for path in (RELAY / "kme").glob("*.py")}
    sources |= {HERE / "example.py": Path("example.py")}
    sources |= {path: Path(path.name) for path in (RELAY / "keys").iterdir() if path.suffix in (".py", ".md")}
    for path, place in sources.items():
        if path.name in OF_THE_RELAY:
            continue
        text = path.read_text(encoding="utf-8")
        for old, new in RENAMED if path.suffix in (".py", ".md") else ():
            text = re.sub(old, new, text)
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        (target / place).write_text(text, encoding="utf-8")


class Package(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the package to the wheel or the source distribution."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds."""
        self._made = tempfile.TemporaryDirectory()
        if not READY.is_dir():  # else hatchling finds it by its name
            write_package(Path(self._made.name))
            build_data["force_include"][self._made.name] = NAME

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called by hatchling afterwards."""
        self._made.cleanup()


class Readme(MetadataHookInterface):
    """Takes the library's page for that of the distribution."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling when it needs the metadata."""
        page = (READY if READY.is_dir() else RELAY / "keys") / "README.md"
        metadata["readme"] = {"content-type": "text/markdown", "text": page.read_text(encoding="utf-8")}
