"""Keeps a change of Postfix, or its undoing, from leaving queued mail or new mail without a way.
Each mail in Postfix's queue keeps the content filter that it had when it came, whatever main.cf says later.
"""

from __future__ import annotations

from pathlib import Path

from relay.config import Config
from relay.counting.amounts import many
from relay.errors import ConfigError
from relay.postfix import PostfixFault, faults
from relay.postfix.queue import QueueUnknown, filtered, without_way
from relay.postfix.settings import PostfixSettings, read_settings
from relay.setup.backups import backups_of, last_backup


class StillQueued(ConfigError):
    """Mail in the queue would wait for ever after the change, or may do so."""


async def raise_if_queued(directory: Path, then: PostfixSettings, config: Config) -> None:
    """Raises StillQueued where mail in the queue goes to a filter that is gone by the settings `then`, or may do so."""
    try:
        stranded = without_way(await filtered(directory), then, config)
    except QueueUnknown as error:
        raise StillQueued(
            f"{directory}: what waits in the queue cannot be read ({error}), and mail there may go to the relay in a "
            "way that this change takes away. Nothing was changed. As root, have `postqueue -j` list the queue and "
            "`postcat -eq ID` each mail in it, then run this again"
        ) from error
    if stranded:
        raise StillQueued(
            f"{directory}: {many(len(stranded), 'mail')} in the queue for the relay, by {stranded[0]}, which this "
            "change takes away. Nothing was changed. While the relay serves as it is, have `postqueue -f` empty "
            "the queue; what cannot leave: `postsuper -d ID`"
        )


async def refuse_undo_that_strands(beside: Path, config: Config) -> None:
    """Raises StillQueued where `undo` would put back another integration, and queued mail would have no way then.

    Undoing the first change takes the relay out, which must be possible while it cannot serve. Raises what `undo` does.
    """
    backup = last_backup(beside)
    directory = Path((backup / "directory").read_text().splitlines()[0])
    if len(backups_of(directory, beside)) > 1:
        await raise_if_queued(directory, await read_settings(backup / "before"), config)


async def left_over(directory: Path, config: Config) -> list[PostfixFault]:
    """What leads from this Postfix to where the relay listens behind another integration only. Raises ConfigError."""
    return [fault for fault in await faults(directory, config) if fault.code == "left-over"]
