"""A set of policies on the command line: a directory, or the version of one that was in force and is kept.
Standard: at least four digits of the version, and enough to distinguish it from all others that are kept.
"""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

import click

from relay.cli.as_relay import relay_rights
from relay.cli.options import ThereIs
from relay.cli.policy_config import exit_with, load_configuration
from relay.cli.policy_site import PolicySite, load_site
from relay.config import Config
from relay.errors import ConfigError
from relay.policy.decide import PolicySet
from relay.policy.expected import Expected
from relay.policy.load import PolicyFolder
from relay.policy.site import SiteFacts

_VERSION = re.compile(r"[0-9a-f]{4,40}", re.IGNORECASE)


class Version(NamedTuple):
    """The first digits of a version, or all of them; and the directory that is called so, if there is one."""

    digits: str
    directory: Path | None = None


class DirectoryOrVersion(ThereIs):
    """What is written like a version may be one; a directory of that name counts where no kept version begins so."""

    def __init__(self) -> None:
        """As click has it for a directory, which is also what a shell completes."""
        super().__init__(only_directory=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A Version or a Path."""
        if not isinstance(value, str) or not _VERSION.fullmatch(value):
            return super().convert(value, param, ctx)
        return Version(value.lower(), Path(value) if Path(value).is_dir() else None)


def site_of(config_file: Path, version: Path | Version) -> PolicySite:
    """Configuration and that set of policies; prints every fault and exits with 1."""
    if isinstance(version, Path):
        return load_site(config_file, version)
    config, certificates = load_configuration(config_file)
    try:
        kept = _kept(config, version)
    except ConfigError as error:
        exit_with(error)
    if kept is None:
        return load_site(config_file, version.directory)
    return PolicySite(config, certificates, *kept)


def in_force_last(config: Config) -> tuple[PolicySet, tuple[Expected, ...]] | None:
    """The set that the relay went by last, of the directory in relay.toml, and its tests; None where it was none.

    Raises ConfigError where that cannot be read.
    """
    from relay.policy.kept import KeptSets, kept_file, text_of_path

    sets = KeptSets(kept_file(config))
    try:
        with relay_rights(config), sets.reading() as book:
            newest = book.newest
            if sets.is_behind:
                raise ConfigError(f"{sets.file}: the set in force could not be kept there")
            if newest is None or newest.directory != text_of_path(config.policies.directory):
                return None
            texts = book.texts(newest)
    except FileNotFoundError:
        return None
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"{sets.file}: cannot be read: {error}") from error
    folder = PolicyFolder(config.policies.directory, config.peer_domains, site=SiteFacts.of(config))
    return texts.read(folder), folder.tests


def _kept(config: Config, version: Version) -> tuple[PolicySet, tuple[Expected, ...]] | None:
    """The set of this version, and its tests; None where the directory is meant. Raises ConfigError."""
    # Here, so that a command that is given directories does not load it.
    from relay.policy.kept import KeptSets, kept_file

    sets, directory = KeptSets(kept_file(config)), version.directory
    try:
        with relay_rights(config), sets.reading() as book:
            candidates = book.beginning(version.digits)
            if directory is not None and not candidates:
                return None
            if directory is not None:
                cause = f"a directory, and version {candidates[0].version} begins so"
                raise ConfigError(f"{directory}: {cause}: write ./{directory} for the directory")
            if len(candidates) != 1:
                cause = (
                    "several versions begin so: "
                    if candidates
                    else "no directory, and no set of this version is kept; "
                )
                hint = ", ".join(each.version for each in candidates) or "`policy log` says which are"
                raise ConfigError(f"{version.digits}: {cause}{hint}")
            texts = book.texts(candidates[0])
    except (OSError, sqlite3.Error) as error:
        if directory is not None:
            return None
        raise ConfigError(f"{sets.file}: cannot be read: {error}") from error
    folder = PolicyFolder(sets.file.with_name(texts.version), config.peer_domains, site=SiteFacts.of(config))
    return texts.read(folder), folder.tests
