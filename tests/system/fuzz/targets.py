"""All fuzz targets by name, and the inputs that once broke them.
Standard: found/NAME/ has one file an input, as it was; its name says what was wrong.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.system.fuzz.target import Target

TARGETS = {
    "smtp": "conversations.SMTP",
    "lmtp": "conversations.LMTP",
    "milter": "milter.MILTER",
    "workers": "workers.WORKERS",
    "mime": "messages.MIME",
    "tripwire": "messages.TRIPWIRE",
    "cms": "structures.CMS",
    "opening": "structures.OPENING",
    "smime": "smime.SMIME",
    "identity": "identities.IDENTITIES",
    "kme": "replies.KME",
    "rules": "rules.RULES",
    "senders": "senders.SENDERS",
    "dkim": "signatures.DKIM",
    "policy": "settings.POLICY",
    "tests": "settings.TESTS",
    "relay": "settings.RELAY",
}
"""Where each one is: only what is asked for is imported, with the readers that it needs."""

FOUND = Path(__file__).parent / "found"


def target_of(name: str) -> Target:
    """The target of this name, which TARGETS has."""
    module, _, attribute = TARGETS[name].partition(".")
    target: Target = getattr(import_module(f"tests.system.fuzz.{module}"), attribute)
    assert target.name == name
    return target


def all_targets() -> dict[str, Target]:
    """Every target by its name."""
    return {name: target_of(name) for name in TARGETS}


def found() -> list[Path]:
    """Every input that broke a target once."""
    return sorted(path for name in TARGETS for path in (FOUND / name).glob("*"))
