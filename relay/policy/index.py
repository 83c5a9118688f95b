"""What `qumail-relay policy list` knows of every file, kept beside the relay's state: most need not be read again.
It is for lists alone: what decides about mail is always read from the files themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from relay.errors import ConfigError
from relay.files.stamps import Stamp
from relay.formats.mailbox import fold_domain
from relay.levels import ONLY_PLAINTEXT, PLAINTEXT
from relay.policy.file import Known, PolicyFile, parse_policy
from relay.policy.names import DEFAULT_FILE, NO_DOMAIN, SUFFIX, printable
from relay.policy.settings import today
from relay.policy.walk import Listing, read_file
from relay.runtime import heap

_FORM = 2


class Facts(NamedTuple):
    """What a file says, as far as lists ask: `rules` has levels, beginning and end of each rule.

    Beginnings and ends are ISO dates, or None.
    """

    levels: tuple[str, ...]
    peer: str | None
    since: str | None
    until: str | None
    subdomains: bool
    rules: tuple[tuple[tuple[str, ...], str | None, str | None], ...]

    @property
    def all_levels(self) -> set[str]:
        """Those of the file and of its rules."""
        return {*self.levels, *(level for levels, *_ in self.rules for level in levels)}

    def in_force(self, day: str) -> Facts:
        """Without rules that do not count on this day; of a file that does not, nothing is left but its dates."""
        if self.ended(day) or not self.begun(day):
            return self._replace(levels=(), rules=())
        return self._replace(rules=tuple(rule for rule in self.rules if _counts(rule[1], rule[2], day)))

    def begun(self, day: str) -> bool:
        """Whether the time of the whole file had begun by this day."""
        return self.since is None or self.since <= day

    def ended(self, day: str) -> bool:
        """Whether the time of the whole file was over before this day."""
        return self.until is not None and self.until < day

    def rule_ended(self, day: str) -> bool:
        """Whether that of one of its rules was."""
        return any(until is not None and until < day for _, _, until in self.rules)


class ListedFile(NamedTuple):
    """One file of a list; `codes` are words that programs may count on."""

    file: str
    scope: str
    domain: str | None
    levels: tuple[str, ...]
    rules: int
    peer: str | None
    until: str | None
    codes: tuple[str, ...]


def listed(
    directory: Path,
    peers: Mapping[str, Sequence[str]],
    index: Path,
    *,
    clear: bool = False,
    level: str | None = None,
    peer: str | None = None,
    expired: bool = False,
) -> tuple[list[ListedFile], int]:
    """The files of which all that is asked for is true, by name, and how many there are. Raises ConfigError.

    What has ended does not count, unless it is asked for.
    """
    owners = {fold_domain(domain): name for name, domains in peers.items() for domain in domains}
    with heap.collecting_nothing():
        facts = _facts(directory, peers, index)
    day = today().isoformat()

    @cache  # many files say the same
    def wanted(said: Facts) -> bool:
        counts = said if expired or (level, clear, peer) == (None, False, None) else said.in_force(day)
        return (
            (level is None or level in counts.all_levels)
            and (not clear or PLAINTEXT in counts.all_levels)
            and (peer is None or not counts.all_levels <= {PLAINTEXT})
            and (not expired or said.ended(day) or said.rule_ended(day))
        )

    rows = (_row(name, each, owners, day) for name, each in facts.items() if wanted(each))
    return sorted(row for row in rows if peer is None or row.peer == peer), len(facts)


def _row(name: str, facts: Facts, owners: Mapping[str, str], day: str) -> ListedFile:
    domain, slash, _ = name.partition("/")
    scope = "person" if slash else "default" if name == DEFAULT_FILE else "domain"
    domain = domain if slash else name.removesuffix(SUFFIX)
    peer = facts.peer or owners.get(domain)
    ended, counts = facts.ended(day), facts.in_force(day)
    says = {
        "clear": counts.levels == ONLY_PLAINTEXT,
        "clear_by_rule": any(PLAINTEXT in levels for levels, *_ in counts.rules),
        "expired": ended,
        "rule_expired": facts.rule_ended(day),
        "ends": facts.until is not None and not ended,
        "rule_ends": any(until is not None for _, _, until in counts.rules),
        "begins": not facts.begun(day),
        "no_peer": peer is None and scope != "default" and facts.levels != ONLY_PLAINTEXT,
    }
    codes = tuple(code for code, is_so in says.items() if is_so)
    shown = None if scope == "default" else domain
    return ListedFile(name, scope, shown, facts.levels, len(facts.rules), peer, facts.until, codes)


def _facts(directory: Path, peers: Mapping[str, Sequence[str]], index: Path) -> dict[str, Facts]:
    """Of every policy file, read again where it is not as it was when it was indexed. Raises ConfigError."""
    listing = Listing(directory)
    listing.look()
    faults = [fault for each in listing.faults.values() for fault in each]
    key = hashlib.sha256(json.dumps([_FORM, str(directory), sorted(peers)]).encode()).hexdigest()
    known = _read_index(index, key)
    found: dict[str, Facts] = {}
    keep: dict[str, tuple[Facts, Stamp]] = {}
    policies: Known = {}
    new = False
    for name, stamp in listing.files.items():
        if name in NO_DOMAIN and name != DEFAULT_FILE:
            continue
        if name in known and known[name][1] == stamp:
            found[name], keep[name] = known[name][0], known[name]
            continue
        try:
            read = read_file(str(directory), name)
            source = printable(f"{directory}/{name}")
            found[name] = _of(parse_policy(name, source, read.text, read.digest, peers.keys(), policies))
        except ConfigError as error:
            faults += error.problems
            continue
        if read.settled:
            keep[name], new = (found[name], read.stamp), True
    if new or len(keep) != len(known):
        _write_index(index, key, keep)
    if faults:
        raise ConfigError(faults)
    return found


def _of(file: PolicyFile) -> Facts:
    policy = file.policy
    rules = tuple((rule.levels or (), _iso(rule.since), _iso(rule.until)) for rule in policy.when)
    return Facts(policy.levels, policy.peer, _iso(policy.since), _iso(policy.until), policy.subdomains, rules)


def _counts(since: str | None, until: str | None, day: str) -> bool:
    return (since is None or since <= day) and (until is None or until >= day)


def _iso(day: date | None) -> str | None:
    return day.isoformat() if day is not None else None


def _read_index(index: Path, key: str) -> dict[str, tuple[Facts, Stamp]]:
    """Empty where it cannot be used."""
    try:
        stored = json.loads(index.read_bytes())
        if stored["key"] != key:
            return {}
        meanings = [_from_json(*each) for each in stored["meanings"]]
        return {
            name: (meanings[number], (mtime, ctime, size, inode, device))
            for name, (number, mtime, ctime, size, inode, device) in stored["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return {}


def _from_json(levels: Any, peer: Any, since: Any, until: Any, subdomains: Any, rules: Any) -> Facts:
    return Facts(tuple(levels), peer, since, until, subdomains, tuple((tuple(each), *days) for each, *days in rules))


def _write_index(index: Path, key: str, files: Mapping[str, tuple[Facts, Stamp]]) -> None:
    """So that a reader sees all of it or nothing; where it cannot be written, lists only take longer."""
    numbers: dict[Facts, int] = {}
    rows = {name: [numbers.setdefault(facts, len(numbers)), *stamp] for name, (facts, stamp) in files.items()}
    beside = index.with_name(f".{index.name}.{os.getpid()}")
    with suppress(OSError):
        beside.touch(mode=0o600)
        beside.write_text(json.dumps({"key": key, "meanings": list(numbers), "files": rows}))
        beside.replace(index)
