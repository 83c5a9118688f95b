"""Notices that something changed in a policy directory: which files, or that everything has to be looked at.
Standard: writing in place, renaming over a file, and swapping a link to the directory or to one in it are all seen.

The kernel tells of changes below the directory; what it cannot tell (files behind links that lead elsewhere) is
found by looking at every file's time of change once a minute.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import structlog
from watchfiles import awatch

from relay.policy.names import SUFFIX

log = structlog.get_logger(__name__)

LOOK_MS = 500
"""How often it is looked whether the directory is still the same one (milliseconds)."""
QUIET_MS = 50
"""Changes are handed on when nothing has changed for this long, so that an editor is done (milliseconds)."""
GATHER_MS = 250
"""Changes are handed on after this time even if there is no quiet (milliseconds)."""
RESCAN_S = 60.0
RETRY_S = 2.0
"""Where nothing can be watched, everything is looked at again after this time."""


class Changes(NamedTuple):
    """Names of the policy files that changed, or None where all have to be looked at.

    `happened` is False where nothing is known to have changed, and it is only time to look again.
    """

    names: frozenset[str] | None
    happened: bool = True


EVERYTHING = Changes(None)
LOOK_AGAIN = Changes(None, happened=False)
NOTHING = Changes(frozenset(), happened=False)


async def watch(directory: Path, asked: asyncio.Event, known: Callable[[], Collection[str]]) -> AsyncIterator[Changes]:
    """Changes below `directory`, until cancelled; NOTHING now and then. Setting `asked` gives LOOK_AGAIN.

    `known` gives the names of the files in force, by which a directory that has vanished is recognised.
    """
    trouble = ""
    while True:
        asked.clear()
        again = EVERYTHING
        target = await asyncio.to_thread(directory.resolve)
        try:
            async for changes in _watched(target, directory, asked, known):
                yield changes
        except (OSError, RuntimeError) as error:  # gone just now, or too many for the kernel
            if str(error) != trouble:
                trouble = str(error)
                log.error("policies_not_watched", directory=str(directory), cause=trouble, instead="looked at again")
            await _pause(asked)
            again = LOOK_AGAIN
        yield LOOK_AGAIN if asked.is_set() else again


async def _watched(
    target: Path, directory: Path, asked: asyncio.Event, known: Callable[[], Collection[str]]
) -> AsyncIterator[Changes]:
    """Changes of files; ends when the watch has to be set up anew and everything has to be looked at."""
    if not await asyncio.to_thread(target.is_dir):
        raise FileNotFoundError(f"{target} is no directory")
    looked = float("-inf")
    events = awatch(
        target,
        watch_filter=None,
        debounce=GATHER_MS,
        step=QUIET_MS,
        stop_event=asked,
        rust_timeout=LOOK_MS,
        yield_on_timeout=True,
        recursive=True,
    )
    async for found in events:
        if await asyncio.to_thread(directory.resolve) != target:
            return
        names = changed_names(target, [Path(path) for _, path in found], known())
        if names is None:
            return
        if time.monotonic() - looked >= RESCAN_S:
            # The first time: what changed between the last reading and the beginning of the watch.
            looked = time.monotonic()
            yield EVERYTHING if names else LOOK_AGAIN
        else:
            yield Changes(frozenset(names)) if names else NOTHING


def changed_names(target: Path, paths: Iterable[Path], known: Collection[str]) -> set[str] | None:
    """The policy files that these changed paths are, or None where the change is a larger one."""
    names: set[str] = set()
    for path in paths:
        try:
            parts = path.relative_to(target).parts
        except ValueError:
            return None
        if not parts:
            return None
        hidden = next((part for part in parts if part.startswith(".")), "")
        if hidden.startswith("..") or (hidden and path.is_symlink()):
            return None  # mounted volumes are swapped by such a link
        if hidden or len(parts) > 2 or parts[-1].endswith("~"):
            continue
        name = "/".join(parts)
        if name.endswith(SUFFIX) and not path.is_dir():
            names.add(name)
        elif path.is_dir() or any(each.startswith(f"{name}/") for each in known) or name.lower().endswith(SUFFIX):
            return None
    return names


async def _pause(asked: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(RETRY_S):
            await asked.wait()
    except TimeoutError:
        pass
