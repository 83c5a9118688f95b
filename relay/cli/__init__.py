"""The command line, whose names are fixed because people script them.
Standard: exit status 0 fine, 1 something is wrong with what was asked about, 2 wrong usage.
"""

from __future__ import annotations

import sys

import click

from relay.cli.bench import bench
from relay.cli.check import check
from relay.cli.files import open_file, seal_file
from relay.cli.identity import identity
from relay.cli.imap import imap
from relay.cli.keys import keys
from relay.cli.kme import kme
from relay.cli.ledger import ledger
from relay.cli.no_dumps import forbid_core_dumps
from relay.cli.policy import policy
from relay.cli.quarantine import quarantine
from relay.cli.serve import serve
from relay.cli.users import users
from relay.errors import ConfigError, RelayError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="qumail-relay")
def cli() -> None:
    """A mail encryption gateway for organisations that share quantum keys (QKD).

    Start with `qumail-relay check --config relay.toml`; deploy/relay.toml explains every setting.
    """


for command in (
    serve,
    check,
    policy,
    ledger,
    seal_file,
    open_file,
    keys,
    identity,
    quarantine,
    imap,
    kme,
    users,
    bench,
):
    cli.add_command(command)


def main() -> None:
    """The console script: errors that the user can mend are said in one line each, never as a traceback."""
    try:
        forbid_core_dumps()
        cli.main(prog_name="qumail-relay")
    except ConfigError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        sys.exit(1)
    except RelayError as error:
        click.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(1)
