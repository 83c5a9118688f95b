"""What policy commands begin with: the configuration, files that the relay may read, the end if something is wrong.
Every fault is one line on standard error; the exit status is 1.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import click

from relay.cli.as_relay import become_the_relays_user, load, relay_rights
from relay.cli.logs import configure_logging
from relay.config import Config, LogSettings
from relay.errors import ConfigError
from relay.identity import PeerCertificates, with_documents
from relay.policy.names import printable


def load_configuration(config_file: Path) -> tuple[Config, dict[str, PeerCertificates]]:
    """The configuration, and the certificates of peers' documents; prints every fault and exits with 1."""
    configure_logging(LogSettings(level="error"))
    try:
        config = load(config_file)
        with relay_rights(config):
            return with_documents(config)
    except ConfigError as error:
        exit_with(error)


def go_on_as_relay(config_file: Path) -> None:
    """From here on as the relay's user, where root runs this; prints every fault and exits with 1."""
    try:
        become_the_relays_user(config_file)
    except ConfigError as error:
        exit_with(error)


def say_all_in_clear(config: Config) -> None:
    """On standard error, where the policies do not count."""
    if cause := config.all_in_clear:
        click.echo(f"NOTE: {cause}, whatever the policies say.", err=True)


def say_what_stands(config: Config, peer: str | None) -> None:
    """On standard error, what the serving relay says of itself, of mail that leaves, and of this peer."""
    from relay.status.active_alarms import of_the_serving_relay

    for each in of_the_serving_relay(config):
        if each.alarm.about in ("", "finding") or each.about == "outgoing" or peer in each.about.split():
            click.echo(f"NOTE: {each.alarm.line(each.about)}: {printable(each.cause)}", err=True)


def say_if_not_in_force(config: Config, version: str) -> None:
    """On standard error, where the relay that serves goes by another set than the files, which have this version."""
    from relay.policy.kept import KeptSets, kept_file
    from relay.status.active_alarms import serves

    if not serves(config):
        return
    with suppress(OSError), relay_rights(config):
        if (in_force := KeptSets(kept_file(config)).in_force) != version:
            text = f"the relay goes by policies of version {printable(in_force)}, and these files are not in force"
            click.echo(f"NOTE: {text}: `qumail-relay check` says why, unless they are so in a moment.", err=True)


def exit_with(error: ConfigError) -> NoReturn:
    """Prints every fault and exits with 1."""
    for problem in error.problems:
        click.echo(printable(problem), err=True)
    raise SystemExit(1) from error
