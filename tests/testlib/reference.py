"""The settings in deploy/SETTINGS.md as one relay.toml: as the page has them, and with every default written out."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "deploy" / "SETTINGS.md"


def as_it_stands() -> str:
    """All tables of the page."""
    return "\n".join(re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE))


def with_everything_set() -> str:
    """The same with the defaults as settings."""
    return re.sub(r"^#(?=[a-z_]+ = )", "", as_it_stands(), flags=re.MULTILINE)


def written(directory: Path) -> Path:
    """A relay.toml with what the page has."""
    path = directory / "relay.toml"
    path.write_text(as_it_stands())
    return path
