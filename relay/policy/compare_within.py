"""Compares two sets of policies within a time, as `policy diff` does: few files at once, and a few more after them.
Standard: policy/compare.py; what was not compared before the time limit is reported.

A file decides together with those that would decide without it, and with those of people at its domain. So a group of
files is compared with all of these, and with all floors and groups of people.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote

from relay.policy.compare import ORDER, Comparison, Difference, Unproven, compare
from relay.policy.comparing.time_limit import OutOfTimeError, at_most
from relay.policy.decide import PolicySet
from relay.policy.names import DEFAULT_FILE, SUFFIX, FoldedAddress, candidates
from relay.policy.step import SetFiles
from relay.runtime import heap

WHOLE = 500
"""Maximum number of files of two sets that are compared at once."""
GROUP = 50
"""Number of files that are compared together, of larger sets."""
SET_ASIDE = 1000
"""Number of files compared after which results are frozen for the garbage collector."""
PAUSE_S = 0.002
"""Pause between two groups, in seconds, for other threads."""


@dataclass(frozen=True, slots=True)
class ComparedSets:
    """The differences, the most important first, and what else may be weaker.

    Of the `files` that may decide differently, `done` were compared. The rules of `unproven` are in `directory`.
    """

    differences: tuple[Difference, ...]
    unproven: tuple[Unproven, ...]
    directory: Path
    done: int
    files: int

    @property
    def weaker(self) -> bool | None:
        """Whether anything is weaker; None if unknown."""
        if any(each.weaker for each in self.differences):
            return True
        return None if self.unproven or not self.whole else False

    @property
    def whole(self) -> bool:
        """Whether all files were compared."""
        return self.done == self.files


def compare_within(
    seconds: float, before: SetFiles, now: SetFiles, clock: Callable[[], float] = time.monotonic
) -> ComparedSets:
    """Compares until done or out of time. Blocks; a group of files that was not finished is left out."""
    until = clock() + seconds
    old, new = before.policies, now.policies
    names = _to_compare(before, now)
    if max(len(old.files), len(new.files)) <= WHOLE:
        found = _compared(seconds, old, new)
        if found is None:
            return ComparedSets((), (), old.directory, 0, len(names))
        return ComparedSets(found.differences, found.unproven, old.directory, len(names), len(names))
    seen: dict[tuple[str, ...], Difference] = {}
    unproven: dict[tuple[str, str], Unproven] = {}
    done = 0
    for part in _parts(names, before, now):
        if (left := until - clock()) < 0:
            break
        comparison = _compared(left, *(_only(each, part.names, tests=not done) for each in (old, new)))
        if comparison is None:
            break
        for each in comparison.differences:
            seen.setdefault((each.direction, each.recipients, each.senders, each.message, *each.changed), each)
        for open_ in comparison.unproven:
            unproven.setdefault((open_.rule, open_.why), open_)
        done += part.files
        if done % SET_ASIDE == 0:
            heap.set_aside()
        time.sleep(PAUSE_S)
    differences = sorted(seen.values(), key=lambda each: ORDER.index(each.direction))
    return ComparedSets(tuple(differences), tuple(unproven.values()), old.directory, done, len(names))


def _compared(seconds: float, old: PolicySet, new: PolicySet) -> Comparison | None:
    """The comparison; None if it takes longer."""
    try:
        with at_most(seconds):
            return compare(old, new)
    except OutOfTimeError:
        return None


def _to_compare(before: SetFiles, now: SetFiles) -> tuple[str, ...]:
    """The files that may decide differently: those that differ, or all if something shared differs.

    Unlike a list, a tuple of strings is not traversed at each full garbage collection.
    """
    old, new = before.policies, now.policies
    if (old.floors, old.groups, old.owners, old.site) == (new.floors, new.groups, new.owners, new.site):
        edits = now.edits(before)
        return tuple(name for names in edits for name in names if name in old.files or name in new.files)
    return tuple(dict.fromkeys((*old.files, *new.files)))


@dataclass(frozen=True, slots=True)
class _FileGroup:
    """Files that are compared together with all that they depend on."""

    names: frozenset[str]
    files: int


def _parts(names: Sequence[str], before: SetFiles, now: SetFiles) -> Iterator[_FileGroup]:
    people = _people(names, before, now)
    separators = now.policies.site.tag_separators
    for begin in range(0, max(len(names), 1), GROUP):
        group = names[begin : begin + GROUP]
        covering = set(group)
        for name in group:
            covering.update(people.get(name.removesuffix(SUFFIX), ()))
            covering.update(each for each, _ in candidates(_address(name), separators))
        covering.add(DEFAULT_FILE)
        yield _FileGroup(frozenset(covering), len(group))


def _people(names: Sequence[str], before: SetFiles, now: SetFiles) -> dict[str, set[str]]:
    """The files of people at the domains whose files these are."""
    domains = {name.removesuffix(SUFFIX) for name in names if "/" not in name}
    people: dict[str, set[str]] = {}
    for each in (before, now) if domains else ():
        for name in each.policies.files:
            domain, person, _ = name.partition("/")
            if person and domain in domains:
                people.setdefault(domain, set()).add(name)
    return people


def _address(name: str) -> FoldedAddress:
    """An address that the file covers."""
    directory, _, stem = name.removesuffix(SUFFIX).rpartition("/")
    return FoldedAddress(unquote(stem), directory) if directory else FoldedAddress("anybody", stem)


def _only(policies: PolicySet, names: frozenset[str], *, tests: bool) -> PolicySet:
    files = MappingProxyType({name: policies.files[name] for name in names if name in policies.files})
    return replace(policies, files=files, tests=policies.tests if tests else ())
