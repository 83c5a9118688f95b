"""`qumail-relay serve`: run the relay until it is told to stop.
Standard: SIGTERM and SIGINT stop after the mails in flight, SIGHUP reads the policy files and certificates again.
"""

from __future__ import annotations

from pathlib import Path

import click
import uvloop

from relay import app, key_receiver
from relay.cli.logs import configure_logging
from relay.cli.options import config_option
from relay.config import load_config


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
    relay serves from a directory: a second one waits some seconds for it to end, then gives up.
    """
    config = load_config(config_file)
    configure_logging(config.log)
    # The second process first: one that is forked later would keep the relay's lock, and stand in a new relay's way.
    uvloop.run(app.serve(config, key_receiver.start(config), ready_file))
