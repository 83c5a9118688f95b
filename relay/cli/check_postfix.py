"""What `check --postfix` finds: faults of the files, filters that do not answer, strangers at the relay's ports.
Standard: relay/postfix reads the configuration; an address is only connected to, and nothing is said there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from relay import postfix
from relay.cli.check_listeners import listener_states, listens_at
from relay.cli.check_site import State
from relay.config import Config
from relay.errors import ConfigError
from relay.files.rights import as_owner_of
from relay.process import app


async def postfix_states(config: Config, directory: Path) -> AsyncIterator[State]:
    """One line for the configuration, and one for each address at which something is wrong.

    Postfix's files may be root's alone to read: root looks at them as their owner, and at nothing of the relay's.
    """
    neighbours: list[postfix.Neighbour] = []
    try:
        with as_owner_of(directory):
            problems = tuple(map(str, await postfix.faults(directory, config)))
            neighbours = await postfix.neighbours(directory, config)
    except ConfigError as error:
        problems = tuple(error.problems)
    yield "Postfix", str(directory), problems
    for each in neighbours:
        if not await listens_at(each.address, unknown=True):
            problem = f"{each.where}: nobody listens at {each.address}: {each.until}; start what belongs there"
            yield f"filter {each.address}", "", (f"{problem}, or take it out",)
    try:
        folders = [*app.listeners(config).values()]
    except ConfigError as error:
        yield "listeners", "", tuple(error.problems)
        return
    async for state in listener_states(config, folders):
        if state[2]:
            yield state
