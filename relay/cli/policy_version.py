"""A set of policies on the command line: a directory, or the version of one that was in force and is kept.
Standard: at least four digits of the version, and enough to distinguish it from all others that are kept.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from relay.cli.as_relay import relay_rights
from relay.cli.options import ThereIs
from relay.cli.policy_config import exit_with, load_configuration
from relay.cli.policy_site import PolicySite, load_site
from relay.config import Config
from relay.errors import ConfigError
from relay.policy.decide import PolicySet
from relay.policy.load import PolicyFolder

if TYPE_CHECKING:
    from relay.policy.kept import KeptSet, KeptSets, KeptTransaction

_VERSION = re.compile(r"[0-9a-f]{4,40}", re.IGNORECASE)
MAX_FAULTS = 3
"""Maximum number of faults shown of a kept set that cannot be read."""
_REMEDY = (
    "Its files cannot be read with the present language and relay.toml: take them from a backup, correct there what is "
    "named here, and give their directory in place of the version."
)


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
        policies = _kept(config, lambda sets, transaction: _of_version(transaction, version))
    except ConfigError as error:
        exit_with(error)
    except (OSError, sqlite3.Error) as error:
        if version.directory is None:
            exit_with(ConfigError(f"{version.digits}: no directory, and no set can be read that is kept: {error}"))
        policies = None
    if policies is None:
        return load_site(config_file, version.directory)
    return PolicySite(config, certificates, policies)


def _of_version(transaction: KeptTransaction, version: Version) -> KeptSet | None:
    """The only kept set of this version; None where the directory is meant. Raises ConfigError."""
    candidates, directory = transaction.beginning(version.digits), version.directory
    if directory is not None and not candidates:
        return None
    if directory is not None:
        cause = f"a directory, and version {candidates[0].version} begins so"
        raise ConfigError(f"{directory}: {cause}: write ./{directory} for the directory")
    if len(candidates) != 1:
        known = ", ".join(each.version for each in candidates)
        none = "no directory, and no set of this version is kept; `policy log` says which are"
        raise ConfigError(f"{version.digits}: {f'several versions begin so: {known}' if known else none}")
    return candidates[0]


def in_force_last(config: Config) -> PolicySet | None:
    """The set that the relay went by last, of the directory in relay.toml; None where it was none.

    Raises ConfigError where that cannot be read.
    """
    from relay.policy.kept import kept_file

    directory = config.policies.directory
    try:
        return _kept(config, lambda sets, transaction: sets.last(transaction, directory), directory)
    except FileNotFoundError:
        return None
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"{kept_file(config)}: cannot be read: {error}") from error


def _kept(
    config: Config, choose: Callable[[KeptSets, KeptTransaction], KeptSet | None], directory: Path | None = None
) -> PolicySet | None:
    """The kept set that is chosen, as if it lay in `directory`. Raises ConfigError, OSError and sqlite3.Error."""
    # Here, so that a command that is given directories does not load it.
    from relay.policy.kept import KeptSets, kept_file

    sets = KeptSets(kept_file(config))
    with relay_rights(config), sets.reading() as transaction:
        if (chosen := choose(sets, transaction)) is None:
            return None
        texts = transaction.texts(chosen)
    folder = PolicyFolder.of(config, directory or sets.file.with_name(texts.version))
    try:
        return texts.read(folder)
    except ConfigError as error:
        within = f"{folder.directory}/"
        faults = [each.removeprefix(within) for each in error.problems if each.startswith(within)]
        more = [f"and {len(faults) - MAX_FAULTS} more faults"] if len(faults) > MAX_FAULTS else []
        said = [f"version {texts.version}: {each}" for each in (*faults[:MAX_FAULTS], *more)]
        raise ConfigError([*said, _REMEDY] if said else error.problems) from error
