"""As whom a command goes on that root types: as the relay's user, wherever that user could put something in its way.
Standard: relay/files/rights.py. Root takes settings only from a file that root alone can have written.

Who the relay's user is, the settings say: it owns the directories that the relay writes in. A command that has nothing
to do as root becomes that user for good before it looks at anything else. One that has (a policy file, a link to swap,
a file where `-o` says) does everything else within `relay_rights`.
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
    """The settings. Where --config names a file of another user, root becomes that user for good.

    Raises ConfigError, for root also where others can write the file.
    """
    become_owner_of_settings(config_file)
    config = load_config(config_file)
    if os.geteuid() == 0 and has_credentials(config):
        from relay.cli.credentials import give_where_the_relay_has_none

        give_where_the_relay_has_none(config)
    return config


def has_credentials(config: Config) -> bool:
    """Whether relay.toml names one of systemd."""
    passphrase = config.identity.passphrase if config.identity is not None else None
    return any(map(credential_name, filter(None, (config.store.secret, passphrase))))


def become_owner_of_settings(config_file: Path) -> None:
    """From here on as the user in whose directory the settings are, or shall be; nothing changes where it is root's.

    Raises what `load` does.
    """
    if os.geteuid() == 0 and (owner := owner_of_settings(config_file)) is not None:
        rights.become(owner)


def load_to_serve(config_file: Path, text: str | None = None) -> Config:
    """The settings of a relay, which runs as the user that starts it; a `text` that is given is read instead.

    Raises ConfigError, also where `refuse_others_settings` does.
    """
    refuse_others_settings(config_file)
    return load_config(config_file, text)


def refuse_others_settings(config_file: Path) -> None:
    """Raises ConfigError for root, where anybody else can write the file: it names programs."""
    if os.geteuid() == 0 and (owner := owner_of_settings(config_file)) is not None:
        raise ConfigError(
            f"{config_file}: user {owner.name} can write it, so root does not run what it says: run this as "
            f"{owner.name} ({as_user(owner.name, 'qumail-relay', '...')}), or make file and directory root's"
        )


def refuse_root(config: Config, config_file: Path) -> None:
    """Raises ConfigError where root would start a relay that runs as another user, who could not use what it makes."""
    if (user := relays_user(config)) is not None:
        raise ConfigError(
            f"{config.state_directory}: belongs to user {user.name}, so root starts no relay with it: "
            f"{how_to('start', config_file, user.name)}"
        )


def owner_of_settings(config_file: Path) -> UnixUser | None:
    """Returns the user who may write this file; None for root alone.

    Raises ConfigError where it is root's and others can write it.
    """
    owner = rights.owner_of(config_file)
    if owner is None and (writer := rights.others_can_write(config_file)):
        raise ConfigError(
            f"{config_file}: root takes no settings from it: {writer}, once you have looked at what it says"
        )
    return owner


def relays_user(config: Config) -> UnixUser | None:
    """The user that the relay runs as, for root; None where that is root, or where this is not run by root.

    Raises ConfigError where nobody can say.
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
    """What root does within is done as the relay's user. Raises ConfigError."""
    return rights.acting_as(relays_user(config))


def reader_of(config_file: Path, directory: Path | None) -> UnixUser | None:
    """Returns the user as whom root reads records: this directory's owner, else the relay's user; None: root.

    Raises ConfigError.
    """
    if os.geteuid():
        return None
    return relays_user(load(config_file)) if directory is None else rights.owner_of(directory)


def become_the_relays_user(config_file: Path) -> None:
    """From here on as the relay's user, where root runs this and the relay does not run as root. Raises ConfigError.

    What this process has opened before stays open: a message file that only root can read, for one.
    """
    if os.geteuid() == 0:
        rights.become(relays_user(load(config_file)))


def person() -> str:
    """The person who runs the command, also behind sudo."""
    return os.environ.get("SUDO_USER") or getpass.getuser()
