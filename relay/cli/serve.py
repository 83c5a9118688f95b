"""`qumail-relay serve`: run the relay until it is told to stop.
Standard: SIGTERM and SIGINT stop after the mails in flight, SIGHUP reads the policy files and certificates again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import click
import uvloop

from relay import app, key_receiver
from relay.cli.logs import configure_logging
from relay.cli.options import config_option
from relay.config import TCPAddress, load_config
from relay.errors import ConfigError
from relay.upkeep import write_whole


@click.command()
@config_option
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path),
    help="Written once all entries listen: a line `name host:port` for each (useful with port 0).",
)
def serve(config_file: Path, ready_file: Path | None) -> None:
    """Run the relay: seal outgoing mail, open incoming mail, until SIGTERM.

    SIGHUP reads the policy files and certificates again. The log goes to standard error. With the embedded database one
    relay serves from it: a second one waits some seconds for that to end, then gives up.
    """
    config = load_config(config_file)
    configure_logging(config.log, for_good=True)

    def ready(addresses: Mapping[str, TCPAddress]) -> None:
        if ready_file is not None:
            with _told_of(ready_file):
                write_whole(ready_file, "".join(f"{name} {address}\n" for name, address in addresses.items()))

    if ready_file is not None:
        # Before a key is drawn: a relay whose file is in a wrong place is started anew again and again.
        _try(ready_file)
    # The second process first: one that is forked later would keep the relay's lock, and stand in a new relay's way.
    uvloop.run(app.serve(config, key_receiver.start(config), ready))


def _try(path: Path) -> None:
    """Whether the file could be made. Raises ConfigError."""
    with _told_of(path), TemporaryFile(dir=path.parent):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Says what could not be written. Raises ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
