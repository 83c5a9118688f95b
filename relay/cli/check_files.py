"""What `check` says of files: state directory, spools and ledger, which must take what cannot wait for room.
Standard: looking leaves nothing behind and gets in the way of no relay that serves; each problem says what to do.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from relay import upkeep
from relay.config import Config
from relay.errors import RelayError, StoreUnavailable
from relay.key_receiver import SPOOL
from relay.keys.receiver import Delivered
from relay.store import SiteSecret, Spool, spool_contents
from relay.store.ledger import why_not_writable
from relay.store.sqlite import no_room

State = tuple[str, str, tuple[str, ...]]
"""What was looked at, where it is, and what is wrong with it."""
HELD = "mail is held (451)"
SPOOLS = (
    (SPOOL, "received keys", f"no KME is asked for keys of arriving mail, and such {HELD}"),
    (upkeep.SENT, "sent mails", f"all {HELD}"),
)
"""What is written at once: the directory's name, what it holds, and what happens where it cannot be written."""


def file_states(config: Config) -> list[State]:
    """All of them. Blocks."""
    return [*_state(config), *_spools(config), *_ledger(config)]


def _state(config: Config) -> list[State]:
    """Whether there is room for what must be written at once, and whether it may be."""
    directory = there = config.state_directory.absolute()
    while not there.exists():
        there = there.parent
    try:
        with TemporaryFile(dir=there):
            problem = no_room(there)
    except OSError as error:
        problem = f"{there}: no file can be made there: {error.strerror}: {HELD}"
    will_be_made = "" if there == directory else ": will be made when the relay first starts"
    return [("state directory", f"{directory}{will_be_made}", (problem,) if problem else ())]


def _spools(config: Config) -> list[State]:
    """What waits there for the store, and whether more could be written down; of one that is not there, nothing."""
    secret = None
    with suppress(RelayError, OSError):  # which is found elsewhere
        secret = SiteSecret.load(config.store.secret) if config.store.secret.exists() else None
    states: list[State] = []
    for name, what, until in SPOOLS:
        directory = config.state_directory / name
        if not directory.is_dir():
            if os.path.lexists(directory):
                problem = f"{directory}: is no directory: move it away; until then {until}"
                states.append((what, str(directory), (problem,)))
        elif secret is not None:
            records, problems = _waiting(directory, secret, config.store.secret)
            detail = str(directory)
            if name == SPOOL:
                try:
                    number = sum(len(Delivered.decoded(record).keys()) for record in records)
                    detail += f": {number} keys wait to be taken over into the store"
                except ValueError:
                    problems.append(f"{directory}: was written by a newer relay")
            try:
                spool = Spool(directory, secret)
                spool.ready()
                spool.close()
            except StoreUnavailable as error:
                problems.append(f"{error}; until there is, {until}")
            states.append((what, detail, tuple(problems)))
    return states


def _waiting(directory: Path, secret: SiteSecret, secret_file: Path) -> tuple[list[bytes], list[str]]:
    """The records in a spool, and what keeps a relay from taking any over."""
    records, problems = [], []
    try:
        for file in spool_contents(directory, secret):
            records += file.records
            if missing := file.secret_ids.difference(secret.ids):
                ids = ", ".join(sorted(missing))
                problems.append(f"{file.path}: holds what is under site secret {ids}, whose line {secret_file} lacks")
    except OSError as error:
        problems.append(f"{error.filename or directory}: {error.strerror}: no relay reads it: move it away")
    return records, problems


def _ledger(config: Config) -> list[State]:
    """Whether a line could be written; before the first start its directory may be missing with the secret's."""
    path = config.ledger_file
    if config.ledger.file is None and not path.parent.exists():
        return []
    problem = why_not_writable(path)
    needed = "mail that needs a line in it (weaker than it could be, in clear, released) is held"
    problems = (f"{path}: cannot be written: {problem}; until it can, {needed}",) if problem else ()
    return [("ledger", str(path), problems)]
