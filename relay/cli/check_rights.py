"""`check` on permissions: reports who besides root and the relay's user can change the relay's inputs.
Standard: OpenSSH's StrictModes, for relay.toml, all files it names and their parent directories; deploy/RUNNING.md.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from relay.cli.backup import named_paths
from relay.cli.check_site import State
from relay.cli.serving import servers_user
from relay.cli.units import how_to_run_what_is_installed, unit_of
from relay.config import Config
from relay.errors import ConfigError
from relay.files import permissions
from relay.files.accounts import user_name
from relay.files.commands import command, named, one_after_the_other
from relay.files.rights import others_can_read, others_can_write, typed_by_root
from relay.policy.names import SUFFIX, printable
from relay.runtime import program

MAX_NAMED = 10
"""Maximum number of files listed for each kind; the others are counted."""
PRIVATE = frozenset({"key", "passphrase", "password_file", "token", "users"})
"""Settings that name a file with a secret; the site secret and the identity are refused where others can read them."""
LOST_AND_FOUND = "lost+found"
"""A directory of root's at the top of a file system; not the relay's."""


def rights_state(config_file: Path, config: Config) -> State:
    """One finding for all files."""
    problems = tuple(dict.fromkeys(_problems(config_file, config)))
    return "rights", f"{config_file} and what it names", problems


def program_state(config_file: Path) -> State:
    """Whether the installed program is what was installed, and root alone can change it, or this user. Blocks."""
    problems = []
    if found := program.writable_by_others((os.geteuid(),)):
        places = program.places()
        remedy = one_after_the_other(
            command("chown", "-hR", "root:root", *places), command("chmod", "-R", "go-w", *places)
        )
        problems.append(f"{printable('; '.join(found))}: root runs it: look at what it is now, then {remedy}")
    elif found := program.differences():
        again = how_to_run_what_is_installed(config_file)
        problems.append(
            f"{'; '.join(found)}: the relay may not start again: install the same release again, then: {again}"
        )
    return "program", ", ".join(map(str, program.places())), tuple(problems)


def owner_states(config_file: Path, config: Config) -> Iterator[State]:
    """A finding if the state belongs to another user than the serving relay's, or else the unit's."""
    if not config.state_directory.exists():
        return
    owner, (runs, user, uid) = _relays_user(config), _runs_as(config_file, config)
    if user and uid != owner:
        whose = f"{config.state_directory}: belongs to user {user_name(owner)}, and {runs} as {user}"
        give = command("chown", "-hR", f"{user}:", config.state_directory)
        yield "owner", "", (f"{whose}, so that it can write nothing there, and does not start again: {give}",)


def _runs_as(config_file: Path, config: Config) -> tuple[str, str, int | None]:
    """Who runs the relay: a sentence, a user's name and number; "" and None if neither a relay nor a unit says."""
    if (uid := servers_user(config)) is not None:
        return "the relay that serves runs", user_name(uid), uid
    if (unit := unit_of(config_file)) is None:
        return "", "", None
    with suppress(KeyError):
        uid = pwd.getpwnam(unit.user).pw_uid
    return f"unit {unit.name} runs", unit.user, uid


def _problems(config_file: Path, config: Config) -> Iterator[str]:
    _, _, uid = _runs_as(config_file, config)
    # With another disk mounted over the state, that is root's: nothing is to be taken from the relay's user.
    trusted = (_relays_user(config), *(() if uid is None else (uid,)))
    yield from _of(config_file, trusted)
    for setting, path in named_paths(config):
        if path != config.policies.directory:
            yield from _of(path, trusted)
        if setting.rpartition(".")[2] in PRIVATE:
            yield from _read_by_others(path, trusted)
    commands = [config.alarms.command or (), *(account.token_command for account in config.imap.values())]
    for executable in (shutil.which(each[0]) for each in commands if each):
        if executable is not None:
            yield from _of(Path(executable), trusted)
    # A site may let a group of people edit policies.
    yield from _of(config.policies.directory, trusted, groups=False)
    yield from _policies(config.policies.directory)
    yield from _not_ours(config_file, config)


def _of(path: Path, trusted: tuple[int, ...], *, groups: bool = True) -> Iterator[str]:
    with suppress(ConfigError):  # unreadable files are reported elsewhere
        if writer := others_can_write(path.absolute(), trusted, groups=groups):
            yield f"{named(path)}: {printable(writer)}"


def _read_by_others(path: Path, trusted: tuple[int, ...]) -> Iterator[str]:
    with suppress(OSError):  # unreadable files are reported elsewhere
        if reader := others_can_read(path, trusted):
            bits = "o-r" if reader == "everybody" else "g-r"
            yield f"{named(path)}: {printable(reader)} can read this private file: {typed_by_root(path, 'chmod', bits)}"


def _not_ours(config_file: Path, config: Config) -> Iterator[str]:
    """Files of the state directory that the relay cannot write, because another user (such as root) made them."""
    only_read = {path.absolute() for path in (config_file, *(path for _, path in named_paths(config)))}
    only_read -= {path.absolute() for path in config.own_paths}
    faults = []
    for where, directories, files in os.walk(config.state_directory.absolute()):
        for path in (Path(where, name) for name in (*directories, *files) if name != LOST_AND_FOUND):
            with suppress(OSError):
                ours = path.lstat().st_uid == os.geteuid() or path.is_symlink() or os.access(path, os.W_OK)
                if not ours and not any(each in only_read for each in (path, *path.parents)):
                    faults.append(path)
    for path in sorted(faults)[:MAX_NAMED]:
        whose = f"belongs to user {user_name(path.lstat().st_uid)}, and {permissions.user()}, as whom the relay runs"
        yield f"{named(path)}: {whose}, cannot write it: {permissions.give_to_us(path)}"
    if len(faults) > MAX_NAMED:
        yield f"{config.state_directory}: {len(faults) - MAX_NAMED} more of its files belong to other users"


def _relays_user(config: Config) -> int:
    """The owner of the state; without one, this user."""
    with suppress(OSError):
        return config.state_directory.stat().st_uid
    return os.geteuid()


def _policies(directory: Path) -> Iterator[str]:
    """World-writable policies below the directory."""
    faults = []
    for where, _, files in os.walk(directory, followlinks=True):
        below = () if Path(where) == directory else (Path(where),)
        for path in (*below, *(Path(where, name) for name in files if name.endswith(SUFFIX))):
            with suppress(OSError):
                if path.stat().st_mode & stat.S_IWOTH:
                    faults.append(path)
    for path in sorted(faults)[:MAX_NAMED]:
        yield f"{named(path)}: everybody can write to it: {typed_by_root(path, 'chmod', 'o-w')}"
    if len(faults) > MAX_NAMED:
        yield f"{directory}: everybody can write to {len(faults) - MAX_NAMED} more of its files"
