"""Options that several commands share, so that they are spelt and explained alike.
--config may also come from the environment, as QUMAIL_RELAY_CONFIG.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

T = TypeVar("T")

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


def as_relay_option(command: Callable[..., T]) -> Callable[..., T]:
    """--config of a command that works with the relay's own files: where root runs it, it goes on as the relay's user.

    So it sees what the relay sees, and leaves no file that the relay cannot read.
    """

    @wraps(command)
    def as_relay(*arguments: Any, config_file: Path, **options: Any) -> T:
        from relay.cli.as_relay import become_the_relays_user

        become_the_relays_user(config_file)
        return command(*arguments, config_file=config_file, **options)

    return config_option(as_relay)
