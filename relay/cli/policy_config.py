"""What every policy command begins with: the configuration, and the end where something is wrong with it.
Every fault is one line on standard error; the exit status is 1.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click

from relay.cli.logs import configure_logging
from relay.config import Config, LogSettings, load_config
from relay.errors import ConfigError
from relay.identity import PeerCertificates, with_documents
from relay.policy.names import printable


def load_configuration(config_file: Path) -> tuple[Config, dict[str, PeerCertificates]]:
    """The configuration, and the certificates of peers' documents; prints every fault and exits with 1."""
    configure_logging(LogSettings(level="error"))
    try:
        return with_documents(load_config(config_file))
    except ConfigError as error:
        exit_with(error)


def exit_with(error: ConfigError, told: Callable[[str], str] = str) -> NoReturn:
    """Prints every fault, as `told` words it, and exits with 1."""
    for problem in error.problems:
        click.echo(printable(told(problem)), err=True)
    raise SystemExit(1) from error
