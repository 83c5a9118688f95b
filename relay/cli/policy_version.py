"""The set of policies that the relay went by last, as it is kept.
Standard: relay/policy/kept.py; what is kept may not be readable with the present relay.toml.
"""

from __future__ import annotations

import sqlite3

from relay.cli.as_relay import relay_rights
from relay.config import Config
from relay.errors import ConfigError
from relay.policy.decide import PolicySet
from relay.policy.load import PolicyFolder


def in_force_last(config: Config) -> PolicySet | None:
    """The set that the relay went by last, of the directory in relay.toml; None where it was none.

    Raises ConfigError where that cannot be read.
    """
    # Here, so that a command that is given directories does not load it.
    from relay.policy.kept import KeptSets, kept_file

    directory = config.policies.directory
    sets = KeptSets(kept_file(config))
    try:
        with relay_rights(config), sets.reading() as transaction:
            if (last := sets.last(transaction, directory)) is None:
                return None
            texts = transaction.texts(last)
    except FileNotFoundError:
        return None
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"{sets.file}: cannot be read: {error}") from error
    try:
        return texts.read(PolicyFolder.of(config, directory))
    except ConfigError as error:
        raise ConfigError([f"version {texts.version}: {each}" for each in error.problems]) from error
