"""Options that several commands share, so that they are spelt and explained alike.
--config may also come from the environment, as QUMAIL_RELAY_CONFIG.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    default=os.environ.get("QUMAIL_RELAY_CONFIG") or "relay.toml",
    envvar="QUMAIL_RELAY_CONFIG",
    show_default=True,
    show_envvar=True,
    help="The relay's configuration file.",
)
