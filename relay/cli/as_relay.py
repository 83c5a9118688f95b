"""Decides which user a command started by root runs as: the relay's user, wherever that user could interfere.
Root accepts settings only from a file that root alone could have written (relay/files/rights.py).

The relay's user is the owner of the directories that the relay writes to, which the settings name. A command that does
not need root becomes that user for good before anything else. A command that does (for a policy file, a link, an `-o`
file) does the rest within `relay_rights`.
"""

from __future__ import annotations

import getpass
import os
from contextlib import AbstractContextManager
from pathlib import Path

from relay.cli.units import how_to
from relay.config import Config, load_config
from relay.errors import ConfigError
from relay.files import rights
from relay.files.commands import as_user
from relay.files.credentials import credential_name
from relay.files.rights import UnixUser


def load(config_file: Path) -> Config:
    """The settings. If the --config file belongs to another user, root becomes that user for good.

    Raises ConfigError; for root also if others can write to the file.
    """
    become_owner_of_settings(config_file)
    config = load_config(config_file)
    if os.geteuid() == 0 and has_credentials(config):
        from relay.cli.credentials import give_where_the_relay_has_none

        give_where_the_relay_has_none(config)
    return config


def has_credentials(config: Config) -> bool:
    """Whether relay.toml names a systemd credential."""
    passphrase = config.identity.passphrase if config.identity is not None else None
    return any(map(credential_name, filter(None, (config.store.secret, passphrase))))


def become_owner_of_settings(config_file: Path) -> None:
    """Switches root for good to the user who owns the settings, or their directory if there are none yet.

    Raises what `load` raises.
    """
    if os.geteuid() == 0 and (owner := owner_of_settings(config_file)) is not None:
        rights.become(owner)


def load_to_serve(config_file: Path, text: str | None = None) -> Config:
    """The settings, or those of `text`, for a relay that runs as the user who starts it.

    Raises ConfigError, including that of `refuse_others_settings`.
    """
    refuse_others_settings(config_file)
    return load_config(config_file, text)


def refuse_others_settings(config_file: Path) -> None:
    """Raises ConfigError for root if anybody else can write to the file: it names programs."""
    if os.geteuid() == 0 and (owner := owner_of_settings(config_file)) is not None:
        raise ConfigError(
            f"{config_file}: user {owner.name} can write it, so root does not run what it says: run this as "
            f"{owner.name} ({as_user(owner.name, 'qumail-relay', '...')}), or make file and directory root's"
        )


def refuse_root(config: Config, config_file: Path) -> None:
    """Raises ConfigError if root starts a relay that runs as another user, who could not use root's files."""
    if (user := relays_user(config)) is not None:
        raise ConfigError(
            f"{config.state_directory}: belongs to user {user.name}, so root starts no relay with it: "
            f"{how_to('start', config_file, user.name)}"
        )


def owner_of_settings(config_file: Path) -> UnixUser | None:
    """Returns the user who may write to this file, None for root alone.

    Raises ConfigError if the file is root's and others can write to it.
    """
    owner = rights.owner_of(config_file)
    if owner is None and (writer := rights.others_can_write(config_file)):
        raise ConfigError(
            f"{config_file}: root takes no settings from it: {writer}, once you have looked at what it says"
        )
    return owner


def relays_user(config: Config) -> UnixUser | None:
    """The user that the relay runs as; None if that is root, or this process is not root's.

    Raises ConfigError if the owners differ.
    """
    if os.geteuid():
        return None
    users: dict[int, tuple[UnixUser, Path]] = {}
    for path in config.own_paths:
        if (owner := rights.owner_of(path)) is not None:
            users.setdefault(owner.uid, (owner, path))
    if len(users) > 1:
        said = " and ".join(f"{path} is user {owner.name}'s" for owner, path in users.values())
        raise ConfigError(f"{said}: the relay runs as one user, and all that it writes has to be that user's")
    return next((owner for owner, _ in users.values()), None)


def relay_rights(config: Config) -> AbstractContextManager[None]:
    """Context in which root acts as the relay's user. Raises ConfigError."""
    return rights.acting_as(relays_user(config))


def reader_of(config_file: Path, directory: Path | None) -> UnixUser | None:
    """Returns the user that root reads records as: the directory's owner, else the relay's user; None for root.

    Raises ConfigError.
    """
    if os.geteuid():
        return None
    return relays_user(load(config_file)) if directory is None else rights.owner_of(directory)


def become_the_relays_user(config_file: Path) -> None:
    """Switches root for good to the relay's user, unless that is root too. Raises ConfigError.

    Files opened before stay open, such as a message file that only root can read.
    """
    if os.geteuid() == 0:
        rights.become(relays_user(load(config_file)))


def person() -> str:
    """The person who runs the command, even through sudo."""
    return os.environ.get("SUDO_USER") or getpass.getuser()
