"""Which files of the relay make the distribution of the key clients: a build hook of hatchling.
Standard: all that `import relay.keys` loads; what only a relay with mail needs stays out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

RELAY = Path(__file__).resolve().parents[2] / "relay"
BELOW = (
    *("__init__.py", "errors.py", "py.typed"),
    *(
        "files/__init__.py",
        "files/commands.py",
        "files/pem.py",
        "files/acl.py",
        "files/permissions.py",
        "files/rights.py",
        "files/stamps.py",
    ),
    *("formats/__init__.py", "formats/characters.py", "formats/unicode_14.txt"),
    *("runtime/__init__.py", "runtime/aio.py"),
    *("counting/__init__.py", "counting/key_metrics.py", "counting/metric.py"),
)
"""What the clients stand on."""
OF_THE_RELAY = {"build.py"}
"""What reads relay.toml."""


class Files(BuildHookInterface):  # type: ignore[type-arg]
    """Adds them to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds."""
        keys = [path for path in sorted((RELAY / "keys").glob("*.py")) if path.name not in OF_THE_RELAY]
        files = [*(RELAY / name for name in BELOW), *keys, RELAY / "keys" / "README.md"]
        build_data["force_include"] |= {str(path): f"relay/{path.relative_to(RELAY)}" for path in files}
