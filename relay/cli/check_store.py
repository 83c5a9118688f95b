"""`check` on the store, its secret, and the files beside them that a relay writes for itself.
Creates nothing; opens an existing store, unless a serving relay uses another file.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from relay.cli.check_site import State
from relay.cli.keys import read_report
from relay.cli.quarantine import existing_store
from relay.config import Config
from relay.errors import ConfigError, RelayError, StoreUnavailable
from relay.files.commands import named
from relay.files.credentials import credential_name, is_there
from relay.files.rights import typed_by_root
from relay.files.stamps import read_json
from relay.process.reloading import former_domains
from relay.status.active_alarms import taken
from relay.status.next_start import in_the_way, written
from relay.store.database import transport_problem
from relay.store.migrations import copies_of_upgrades
from relay.store.sameness import ACCEPT, remembered
from relay.store.secret import SiteSecret
from relay.store.store import Store


def secret_state(config: Config) -> State:
    """Whether the secret can be read, and whether a thief of the store would have it too."""
    path = config.store.secret
    try:
        if not (is_there(path) or credential_name(path)):
            return "store secret", f"{path}: will be made when the relay first starts", ()
        SiteSecret.load(path)
        return "store secret", f"{path}{_with_what_it_seals(config)}", tuple(_left_in_plain(config))
    except RelayError as error:
        return "store secret", str(path), (str(error),)


def _left_in_plain(config: Config) -> Iterator[str]:
    """The plain file that is left over after the secret became a credential."""
    left = config.own_directory / "site.secret"
    if credential_name(config.store.secret) and os.path.lexists(left):
        yield (
            f"{left}: lies in plain beside what it seals, though the secret is a credential by now; once the relay "
            f"serves with that: {typed_by_root(left, 'rm')}; then a new one: qumail-relay keys rotate-secret"
        )


def _with_what_it_seals(config: Config) -> str:
    if credential_name(config.store.secret):
        return ": a credential of systemd; the disk has it encrypted (deploy/THREATS.md)"
    database = config.store.database
    for sealed in (database if isinstance(database, Path) else config.state_directory, config.state_directory):
        with suppress(OSError):
            if sealed.stat().st_dev == config.store.secret.stat().st_dev:
                return f": on the same file system as {sealed}, which it seals: a copy of that disk opens it"
    return ""


async def store_state(config: Config, config_file: Path) -> State:
    """How the store is reached, whether it exists, and whether it is writable."""
    where = config.store.database
    try:
        problem = transport_problem(where)
    except ConfigError as error:
        return "store", "", tuple(error.problems)
    detail = str(where) if isinstance(where, Path) else "PostgreSQL"
    problems = [problem] if problem else []
    try:
        async with existing_store(config) as store:
            if store is not None:
                problems += await _another(store, config_file)
                problems += await _missing_secrets(store, config)
                await store.received.ready()
            else:
                problems += await asyncio.to_thread(lambda: list(_missed(config, detail)))
    except StoreUnavailable as error:
        problems.append(f"cannot be written: {error}; until it can, mail is held and no KME is asked for keys")
    except ConfigError as error:
        if not secret_state(config)[2]:  # reported elsewhere
            problems += error.problems
    problems += await asyncio.to_thread(lambda: list(_copies_of_upgrades(config)))
    return "store", detail, tuple(problems)


def _missed(config: Config, store: str) -> Iterator[str]:
    """Without a store: whether there was one. Blocks."""
    last = remembered(config.restore_check_file)
    if last is not None and last.mark:
        yield (
            f"{store}: is gone or empty, and {config.restore_check_file} says that there was a store: received keys, "
            "what lay in quarantine and what was delivered are forgotten: put it back, or restore a backup, with the "
            "relay stopped"
        )
    elif last is None and config.has_served:
        yield (
            f"{store}: is gone or empty, as is {config.restore_check_file}, though a relay has served here: restore a "
            "backup, with the relay stopped"
        )


async def _another(store: Store, config_file: Path) -> list[str]:
    """Reasons to believe that the store is not the former one."""
    doubt = await store.restore_check.doubts()
    accept = f"{ACCEPT} --config {config_file}"
    problem = f"{doubt}: put the right one back, with the relay stopped; if this one is meant: {accept}"
    return [problem] if doubt else []


def _copies_of_upgrades(config: Config) -> Iterator[str]:
    """Copies older than a day, when the upgrade has proved itself. Blocks."""
    if isinstance(config.store.database, Path):
        for copy in copies_of_upgrades(config.store.database):
            with suppress(OSError):
                if copy.lstat().st_mtime < time.time() - 86_400.0:
                    yield (
                        f"{named(copy)}: is the store before an upgrade, with keys that were destroyed since: delete "
                        f"it, or keep it elsewhere: {typed_by_root(copy, 'rm')}"
                    )


async def _missing_secrets(store: Store, config: Config) -> list[str]:
    return [
        f"{rows} keys and messages are under site secret {secret_id}, whose line {config.store.secret} lacks: put it "
        "back, as in the file of the relay that wrote them; until then mail that needs them is held"
        for secret_id, rows in (await store.missing_secrets()).items()
    ]


def kept_state(config: Config) -> State:
    """Whether the relay's files for its next start and for administrators are usable. Blocks."""
    return "state files", str(config.state_directory), tuple(_in_the_way(config))


def _in_the_way(config: Config) -> Iterator[str]:
    yield from in_the_way(config)
    harms = written(config)
    # Faults of held.json are reported with held mail.
    readers: dict[Path, Callable[[Path], object]] = {
        config.former_peers_file: partial(read_json, take=former_domains),
        config.alarms_file: partial(read_json, take=taken),
        config.keys_file: read_report,
    }
    for path, read in readers.items():
        if path.is_file():
            try:
                read(path)
            except (OSError, ValueError) as error:
                yield f"{path}: cannot be read: {error}: move it away; until then {harms[path][1]}"
