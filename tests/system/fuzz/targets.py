"""All fuzz targets by name, and the inputs that once broke them.
Standard: found/NAME/ has one file an input, as it was; its name says what was wrong.
"""

from __future__ import annotations

from pathlib import Path

from tests.system.fuzz import conversations, messages, milter, replies, rules, senders, settings, signatures, structures

TARGETS = {
    target.name: target
    for target in (
        conversations.SMTP,
        conversations.LMTP,
        milter.MILTER,
        messages.MIME,
        messages.TRIPWIRE,
        structures.CMS,
        structures.OPENING,
        replies.KME,
        rules.RULES,
        senders.SENDERS,
        signatures.DKIM,
        settings.POLICY,
        settings.RELAY,
    )
}

FOUND = Path(__file__).parent / "found"


def found() -> list[Path]:
    """Every input that broke a target once."""
    return sorted(path for name in TARGETS for path in (FOUND / name).glob("*"))
