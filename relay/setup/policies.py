"""Writes the first policy files of a site: for its own domains, for peers, and for everybody else.
Standard: policies/README.md; an existing file is never changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from relay.errors import ConfigError
from relay.formats.mailbox import fold_domain
from relay.levels import ON_TOP, PQC, SIGNED
from relay.policy.file import Unprotected
from relay.policy.names import NO_DOMAIN, SUFFIX
from relay.setup.answers import Answers
from relay.setup.files import Owner, Written, put

HOLD_FOR = "2 d"
"""Time that mail to a peer is held before the sender is notified; less than a queue's lifetime (Postfix: 5 days)."""
EVERYBODY = {
    "clear": (
        "# Everybody who has no file of their own: their mail leaves IN CLEAR.\n"
        'levels = ["plaintext"]\nreason = "sites that are no peers of ours"\n'
    ),
    "refuse": (
        "# Everybody who has no file of their own: the sender is notified that we share no keys with them.\n"
        'levels = ["pqc"]\n'
    ),
}
"""The default.toml for each answer; without one, mail that no file covers is held."""


def write_first_policies(directory: Path, answers: Answers, owner: Owner) -> list[Written]:
    """Writes the files for our own domains and everybody else. Raises ConfigError."""
    own = '# Our own domain: its mail stays inside, as it is.\nlevels = ["plaintext"]\nreason = "stays inside"\n'
    written = [_put(directory, domain, own, owner) for domain in answers.domains]
    default = directory / "default.toml"
    if answers.everybody != "hold":
        written.append(put(default, EVERYBODY[answers.everybody].encode(), owner))
    elif default.exists():
        written.append(Written(default, "kept, though it says something else"))
    return written


def peer_policy(levels: Sequence[str], *, on_top: bool, unprotected: Unprotected | None) -> str:
    """The first policy file of a peer that opens these levels; without levels, mail to it is refused.

    `on_top`: a layer under a quantum key may wrap them. `unprotected` is for unsealed mail in the peer's name, None if
    this relay opens no mail.
    """
    if levels:
        text = "# A peer: its mail is sealed, at the first of these levels that is available, and held while none is.\n"
        listed = [each for level in levels for each in (_on_top(level) if on_top else (level,))]
        if not on_top and not SIGNED.isdisjoint(levels):
            text += '# No quantum keys are shared with it: where there are some, list "aes" or "pqc+aes" as well.\n'
        text += f"levels      = {json.dumps(listed)}\n"
        text += f'otherwise   = "hold {HOLD_FOR}"\n'
    else:
        text = "# A peer that cannot receive, by its document: no level can be had, and the sender is notified.\n"
        text += f'levels      = ["{PQC.name}"]\notherwise   = "refuse"\n'
    if unprotected is not None:
        text += (
            "# What arrives in its name must have been sealed by it; everything else is forged, or went another way.\n"
        )
        text += f'require     = "sealed"\nunprotected = "{unprotected}"\n'
    return text


def _on_top(level: str) -> tuple[str, ...]:
    """The level with and without a quantum key on top; unchanged if it uses such a key itself."""
    return (f"{level}+{ON_TOP}", level) if level in SIGNED else (level,)


def write_peer_policies(directory: Path, domains: Iterable[str], text: str, owner: Owner) -> list[Written]:
    """Writes this file for each domain without one. Raises ConfigError."""
    return [_put(directory, domain, text, owner) for domain in domains]


def policy_file(domain: str) -> str:
    """The name of a domain's policy file. Raises ConfigError if the name has another meaning."""
    try:
        name = fold_domain(domain) + SUFFIX
    except ValueError as error:
        raise ConfigError(f"{domain}: {error}") from error
    if name in NO_DOMAIN:
        raise ConfigError(f"the domain {domain!r} cannot have a policy file: {name} says something else")
    return name


def _put(directory: Path, domain: str, text: str, owner: Owner) -> Written:
    return put(directory / policy_file(domain), text.encode(), owner)
