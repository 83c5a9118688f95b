"""The command line. Command names are fixed, because scripts use them.
Exit status 0 for success, 1 if what was asked about has a fault, 2 for wrong usage.
"""

from __future__ import annotations

import errno
import os
import sys

import click

from relay.cli import stdout
from relay.cli.lazy import LaterCommand, LazyGroup
from relay.errors import ConfigError, RelayError
from relay.files import permissions
from relay.runtime import signals
from relay.runtime.prctl import forbid_core_dumps

COMMANDS = {
    "audit": LaterCommand(
        "audit:audit", "Look at the record of all mails: what protected each, by which policy, and what became of it."
    ),
    "backup": LaterCommand(
        "backup:backup",
        "Copy what the relay writes by itself (store, spools, audit) into the new directory TO, also while it serves.",
    ),
    "certificates": LaterCommand(
        "certificates:certificates", "Other people's and gateways' S/MIME certificates, for level smime."
    ),
    "check": LaterCommand(
        "check:check",
        "Look at configuration, policies, store, quarantine, mailboxes, KMEs and next hops, and say what is wrong.",
    ),
    "groups": LaterCommand("groups:groups", "Take groups of people from a directory (LDAP) into the policies."),
    "identity": LaterCommand(
        "identity:identity",
        "Who this site is to its peers: keys, certificates, and the documents that sites exchange.",
    ),
    "imap": LaterCommand("imap:imap", "Mailboxes that this relay reaches only by IMAP ([imap.*]).", listener="imap"),
    "keys": LaterCommand("keys:keys", "Look after the quantum keys: stored, used, and how long they will last."),
    "kme": LaterCommand(
        "kme:kme", "Run the development key servers KM1 and KM2: for trying out and testing. THEY ARE NOT QUANTUM."
    ),
    "ledger": LaterCommand(
        "ledger:ledger", "Look at the record of mails that left with less than the first level listed for them."
    ),
    "open": LaterCommand(
        "files:open_file",
        "Open the sealed message in FILE (- for standard input): the original comes out, byte for byte.",
    ),
    "policy": LaterCommand(
        "policy:policy", "Check the policy files, explain what they decide, and try them on real mail."
    ),
    "quarantine": LaterCommand(
        "quarantine:quarantine", "Look at arriving mail that could not be opened, release it, or drop it."
    ),
    "seal": LaterCommand(
        "files:seal_file",
        "Seal the message in FILE (- for standard input) as policy says for --to; a key is spent.",
    ),
    "serve": LaterCommand(
        "serve:serve",
        "Run the relay: seal outgoing mail, open incoming mail, until SIGTERM.",
        without=("rich", "greenlet"),  # structlog would import them
    ),
    "setup": LaterCommand(
        "setup:setup",
        "Set this site up: relay.toml, first policies, keys and certificates, and Postfix beside it.",
    ),
    "store": LaterCommand("store:store", "Say that the store is meant to be another one than it was."),
    "trace": LaterCommand(
        "trace:trace", "Tell what happened to one mail here, in order, from the audit record and a log."
    ),
    "users": LaterCommand(
        "users:users",
        "Say who may submit mail to the relay, and from which addresses ([submission] users).",
        listener="smtp",
    ),
}


@click.group(
    cls=LazyGroup,
    later=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="qumail-relay")
@click.option("--as-user", type=(int, int), hidden=True, help="For setup's: become this user and group, where root is.")
def cli(as_user: tuple[int, int] | None) -> None:
    """A mail encryption gateway for organisations that share quantum keys (QKD).

    Start with `qumail-relay setup`; SETTINGS.md explains every setting: in deploy/, where the package puts it in
    /usr/share/doc/qumail-relay/deploy.
    """
    if as_user is not None:
        from relay.files.rights import UnixUser, become

        become(UnixUser.numbered(*as_user))


def main() -> None:
    """The console script. Prints errors that the user can fix as one line each, without a traceback."""
    if sys.argv[1:2] == ["serve"]:  # the imports take most of a second
        signals.end_nothing()
    stdout.open_output()
    try:
        try:
            _run()
        finally:
            stdout.flush_output()
    except stdout.NotPrinted as error:
        stdout.drop_output()
        _say(stdout.why(error))
        sys.exit(1)


def _run() -> None:
    try:
        forbid_core_dumps()
        os.environ["PYDANTIC_DISABLE_PLUGINS"] = "1"  # else it finds and runs all installed plugins
        cli.main(prog_name="qumail-relay")
    except ConfigError as error:
        for problem in error.problems:
            _say(problem + _as_whom(problem))
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        problem = permissions.cause(str(error.filename), error, "")
        _say(problem + _as_whom(problem))
        sys.exit(1)
    except RelayError as error:
        _say(f"{type(error).__name__}: {error}")
        sys.exit(1)


def _say(text: str) -> None:
    """Prints one line to standard error, escaped: others choose file names, which must not begin a new line."""
    from relay.files.permissions import printable

    click.echo(printable(text), err=True)


def _as_whom(problem: str) -> str:
    """Advice for a user without permission, if the problem does not contain it."""
    if os.geteuid() == 0 or not problem.endswith(os.strerror(errno.EACCES)):
        return ""
    return ": run this as root, or as the relay's user"
