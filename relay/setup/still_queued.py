"""Prevents a change of Postfix, or its undo, from stranding queued or new mail.
Mail in Postfix's queue keeps the content filter of its arrival, whatever main.cf says later.
"""

from __future__ import annotations

from pathlib import Path

from relay.config import Config
from relay.counting.amounts import many
from relay.errors import ConfigError
from relay.postfix import PostfixFault, judge
from relay.postfix.queue import QueueUnknown, filtered, without_way
from relay.postfix.settings import PostfixSettings, read_settings
from relay.setup.backups import backups_of, last_backup


class StillQueued(ConfigError):
    """Mail in the queue would wait for ever after the change, or may do so."""


async def raise_if_queued(directory: Path, then: PostfixSettings, config: Config) -> None:
    """Raises StillQueued if queued mail needs, or may need, a filter that is gone by the settings `then`."""
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
    """Raises StillQueued if `undo` would restore another integration and strand queued mail.

    Undo of the first change removes the relay, which must be possible while it cannot serve. Raises what `undo` raises.
    """
    backup = last_backup(beside)
    directory = Path((backup / "directory").read_text().splitlines()[0])
    if len(backups_of(directory, beside)) > 1:
        await raise_if_queued(directory, await read_settings(backup / "before"), config)


async def left_over(directory: Path, config: Config) -> list[PostfixFault]:
    """Settings of this Postfix that lead to listeners of another integration only. Raises ConfigError."""
    return list((await judge(directory, config)).among(frozenset({"left-over"})))
