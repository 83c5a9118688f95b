"""Keeps a copy of the policy files that are in force, for a process that starts while the files are broken.
Standard: a copy counts only where it is whole: what is read of it has the version that was in force.

The copy lies beside the store, as a directory of policy files. While it is being changed it has no version: a relay
that is killed meanwhile leaves none that counts, and none of two sets mixed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from relay import permissions
from relay.errors import ConfigError
from relay.policy.decide import PolicySet
from relay.policy.load import PolicyFolder
from relay.policy.walk import Listing

log = structlog.get_logger(__name__)

KEPT_POLICIES = "policies.kept"
"""What the copy is called in the state directory."""
_VERSION = ".version"
"""Has the version of the set, and on the second line the directory that it is of; no policy file is called so."""


@dataclass(slots=True)
class LastGood:
    """One such copy; of several processes one `writes`, and it alone has to be told of `texts`."""

    copy: Path
    writes: bool = True
    texts: dict[str, str] = field(default_factory=dict)
    """What was read, by name, since the copy was written last."""
    _there: Collection[str] | None = None
    """The files in the copy, once it was looked through."""

    def read(self, of: Path, peers: Mapping[str, Sequence[str]], max_bounce: int) -> tuple[PolicySet, frozenset[str]]:
        """The set that was in force last, and which files there were for no domain. Raises ConfigError."""
        folder = PolicyFolder(self.copy, peers, max_bounce=max_bounce)
        try:
            version, _, directory = (self.copy / _VERSION).read_text().partition("\n")
        except OSError as error:
            raise ConfigError(permissions.cause(self.copy, error, "no set from before is kept: ")) from error
        policies = folder.read_tested()
        if (policies.version, str(of)) != (version, directory):
            raise ConfigError(f"{self.copy}: not the whole of the set that was in force last")
        return policies, folder.beside

    def keep(self, policies: PolicySet, beside: Collection[str]) -> None:
        """This set is in force now; where it cannot be written none is kept, and the log says so."""
        if not self.writes:
            return
        try:
            self._write(policies, beside)
        except (OSError, ConfigError) as error:
            log.warning("policies_not_kept", directory=str(self.copy), cause=str(error))

    def _write(self, policies: PolicySet, beside: Collection[str]) -> None:
        self.copy.mkdir(mode=0o700, parents=True, exist_ok=True)
        version, mark = self.copy / _VERSION, f"{policies.version}\n{policies.directory}"
        is_so = version.exists() and version.read_text() == mark
        if not is_so:
            version.unlink(missing_ok=True)
        there, self._there = self._there if self._there is not None else _files_in(self.copy), None
        for name in there:
            if name not in policies.files and name not in beside:
                (self.copy / name).unlink()
        while self.texts:  # one by one: to let 100,000 go at once would hold every thread
            name, text = self.texts.popitem()
            if name in policies.files or name in beside:
                self._write_one(name, text)
        if not is_so:
            _write(version, mark.encode())
        self._there = (*policies.files, *beside)

    def _write_one(self, name: str, text: str) -> None:
        try:
            _write(self.copy / name, text.encode())
        except OSError:
            self.texts[name] = text  # the next time it may succeed, and a copy without it would never be whole
            raise


def _files_in(copy: Path) -> Collection[str]:
    listing = Listing(copy)
    listing.look()
    if listing.unread:  # what lies there would stay
        raise ConfigError([fault for name in sorted(listing.unread) for fault in listing.faults[name]])
    return listing.files


def _write(path: Path, octets: bytes) -> None:
    """Writes it whole, unless it is there already."""
    try:
        if path.read_bytes() == octets:
            return
    except OSError:
        path.parent.mkdir(mode=0o700, exist_ok=True)
    beside = path.with_name(f".{os.getpid()}")
    beside.write_bytes(octets)
    beside.replace(path)
