"""Whether a relay would start, and its certificates could be renewed, with the files as they are now.
A serving relay keeps what it has read, so that a lost or damaged file would only show at the next start.

Left out: policies, without which a start uses the last good ones. relay/status/ready.py looks at the site secret, the
state directory and what is in the store.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path

from relay.audit.writing import ANNOUNCED
from relay.config import Config
from relay.entry import ListenerModule
from relay.errors import ConfigError
from relay.files import permissions
from relay.files.rights import typed_by_root
from relay.forward import NextHop
from relay.identity import KnownSites, check_own_ca
from relay.key_receiver import SPOOL
from relay.keys.build import km_client
from relay.policy.kept import KEPT_POLICIES
from relay.runtime import program
from relay.status import StatusModule
from relay.store.sent import SENT

LOOK_S = 10.0
"""Minimum interval between looks, in seconds."""
SHARE = 20
"""Minimum interval as a multiple of the duration of a look: a thousand documents take two seconds."""


class NextStart:
    """The result of the last look: `problem` is "" if a relay would start, None before the first look."""

    def __init__(self, read: Callable[[], Config], modules: Collection[ListenerModule | StatusModule]) -> None:
        """`read` returns the settings of the file now, or raises ConfigError; `modules` are those that serve."""
        self._read = read
        self._modules = modules
        self.problem: str | None = None

    async def keep_up(self) -> None:
        """Looks again and again, until cancelled."""
        took = 0.0
        while True:
            await asyncio.sleep(max(LOOK_S, SHARE * took))
            began = time.monotonic()
            self.problem = "; ".join(await asyncio.to_thread(self._problems))
            took = time.monotonic() - began

    def _problems(self) -> list[str]:
        try:
            steps = list(self._steps(self._read()))
        except ConfigError as error:
            return error.problems
        problems: dict[str, None] = {}
        for step in steps:
            try:
                step()
            except ConfigError as error:
                problems |= dict.fromkeys(error.problems)
            except Exception as error:  # noqa: BLE001 - at a start it would end the relay
                problems[f"{type(error).__name__}: {error}"] = None
        return list(problems)

    def _steps(self, config: Config) -> Iterator[Callable[[], object]]:
        """Reads the files of one kind each, as a start does."""
        yield check_program
        yield partial(check_store_file, config)
        yield partial(check_kinds, config)
        yield partial(KnownSites.read, config)
        if config.identity is not None:
            yield partial(check_own_ca, config.identity)
        if config.dkim is not None:
            from relay.dkim.keys import load_keys  # as in assembly.py

            yield partial(load_keys, config)
        yield from (partial(km_client, name, kme) for name, kme in config.kmes.items())
        directions = (each for each in (config.outgoing, config.incoming) if each is not None)
        yield from (partial(NextHop, each, config.site.hostname) for each in directions)
        yield from (partial(each.read_files, config) for each in self._modules)


def check_program() -> None:
    """Raises ConfigError if files of the program are missing or changed."""
    if found := program.differences():
        raise ConfigError(f"{'; '.join(found)}: install the same release again")


def check_kinds(config: Config) -> None:
    """Raises ConfigError if something else is in the place of files or directories that the relay writes."""
    if found := in_the_way(config):
        raise ConfigError(found)


def written(config: Config) -> dict[Path, tuple[Callable[[Path], bool], str]]:
    """The directories and files that the relay writes, the kind that each must be, and the harm if it is not."""
    state = config.state_directory
    return {
        state / SPOOL: (Path.is_dir, "no KME is asked for keys of arriving mail, and such mail is held (451)"),
        state / SENT: (Path.is_dir, "no relay starts"),
        state / ANNOUNCED: (Path.is_dir, "a kill costs records of the audit"),
        state / KEPT_POLICIES: (Path.is_dir, "no relay starts on broken policies"),
        config.restore_check_file: (Path.is_file, "a restored store is not noticed"),
        config.former_peers_file: (Path.is_file, "a restart forgets whose the peers' domains were"),
        config.held_file: (Path.is_file, "a restart forgets whose mail waits"),
        config.alarms_file: (Path.is_file, "check knows no alarms"),
        config.keys_file: (Path.is_file, "keys status knows nothing of the relay that serves"),
    }


def in_the_way(config: Config) -> list[str]:
    """What is in the place of these files and directories, with remedy and harm."""
    return [
        f"{path}: is no {'directory' if kind is Path.is_dir else 'regular file'}: move it away; until then {harm}"
        for path, (kind, harm) in written(config).items()
        if os.path.lexists(path) and not kind(path)
    ]


def check_store_file(config: Config) -> None:
    """Raises ConfigError with the remedy if the embedded database cannot be opened."""
    database = config.store.database
    if not isinstance(database, Path) or os.access(database, os.R_OK | os.W_OK, effective_ids=True):
        return
    try:
        mode = database.stat().st_mode
    except OSError:  # relay/status/ready.py looks for it
        return
    # With these rights it has an attribute (chattr(1)), or its file system is mounted read-only.
    has_rights = mode & 0o600 == 0o600
    remedy = typed_by_root(database, "lsattr") if has_rights else typed_by_root(database, "chmod", "u+rw")
    raise ConfigError(
        f"{database}: a relay that starts cannot open it{permissions.another_owner(database) or f': {remedy}'}"
    )
