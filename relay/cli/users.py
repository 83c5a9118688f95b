"""`qumail-relay users`: who may submit mail; passwords come from the terminal or standard input, never from arguments.
Exit status 0 fine, 1 something is wrong with the file or the user, 2 wrong usage.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from relay.cli.as_relay import load, relays_user
from relay.cli.options import config_option
from relay.cli.output import json_option, plain_console, print_json, print_table
from relay.entry.smtp.users import (
    NO_PASSWORD,
    SubmissionUser,
    change_users,
    folded_name,
    hashed,
    listed,
    parse_user,
    read_users,
)
from relay.errors import ConfigError
from relay.files import rights
from relay.policy.names import printable

SHORTEST = 8
"""Minimum length of a password, in characters (NIST SP 800-63B, 5.1.1.1): a slow hash does not replace length."""

file_option = click.option(
    "--file", "path", type=click.Path(path_type=Path), help="Another file than the configured one."
)


@click.group()
def users() -> None:
    """Say who may submit mail to the relay, and from which addresses ([submission] users)."""


@users.command()
@config_option
@file_option
@click.argument("name")
@click.argument("addresses", nargs=-1)
@click.option("--stdin", "from_stdin", is_flag=True, help="Read the password from standard input: its first line.")
@click.option("--no-password", is_flag=True, help="Dovecot checks the password; the file has the addresses alone.")
def add(
    config_file: Path, path: Path | None, name: str, addresses: tuple[str, ...], from_stdin: bool, no_password: bool
) -> None:
    """Add user NAME, or give them a new password.

    ADDRESSES are those that they may send from: user@domain, @domain for all of a domain, * for any address, and <>
    for the null sender. Without any, a new user gets their own name, which must be an address then, and a user who
    is there keeps what they have.
    """
    path, user = _path(config_file, path)
    password_hash = NO_PASSWORD if no_password else hashed(_password(from_stdin))

    def put(users: dict[str, SubmissionUser]) -> None:
        existing = users.get(folded_name(name))
        allowed = addresses or (existing.addresses if existing else (name,))
        users[folded_name(name)] = parse_user(f"{name}:{password_hash}:{','.join(allowed)}")
        click.echo(f"{path}: {name} may send from {', '.join(allowed)}")

    try:
        with rights.as_owner_of(path.parent):
            change_users(path, put, owner=user)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


@users.command()
@config_option
@file_option
@click.argument("name")
def remove(config_file: Path, path: Path | None, name: str) -> None:
    """Remove user NAME; what they send from now on is not taken, also on a connection that is open."""
    path, user = _path(config_file, path)

    def take_out(users: dict[str, SubmissionUser]) -> None:
        if users.pop(folded_name(name), None) is None:
            raise ConfigError(f"{path}: no user {printable(name)}")

    with rights.as_owner_of(path.parent):
        change_users(path, take_out, owner=user)
    click.echo(f"{path}: {name} removed")


@users.command("list")
@config_option
@file_option
@json_option("a list of users; never a hash")
def list_users(config_file: Path, path: Path | None, as_json: bool) -> None:
    """Show the users and the addresses that they may send from."""
    path, _ = _path(config_file, path)
    with rights.as_owner_of(path):
        known = list(read_users(path).values())
    if as_json:
        print_json(listed(known))
        return
    has = {True: "Dovecot's", False: "argon2"}
    rows = (
        (user.name, ", ".join(user.addresses) or "nothing", has[user.password_hash == NO_PASSWORD]) for user in known
    )
    print_table(plain_console(), ("User", "May send from", "Password"), rows)
    click.echo(f"{len(known)} users")


@users.command()
@config_option
@file_option
def check(config_file: Path, path: Path | None) -> None:
    """Say what is wrong with the file: its mode, its owner, its lines."""
    path, _ = _path(config_file, path)
    with rights.as_owner_of(path):
        known = read_users(path)
    click.echo(f"{path}: {len(known)} users, nothing wrong")


def _path(config_file: Path, path: Path | None) -> tuple[Path, rights.UnixUser | None]:
    """The file, and the user that root creates it for: the relay's user, if the settings name one."""
    if path is not None:
        return path.absolute(), rights.owner_of(path) if os.geteuid() == 0 else None
    config = load(config_file)
    submission = config.submission
    if submission is None or submission.users is None:
        raise ConfigError(f"{config_file}: [submission] users is not set; name a file with --file")
    return submission.users, relays_user(config)


def _password(from_stdin: bool) -> str:
    if from_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    if len(password) < SHORTEST:
        raise click.UsageError(f"the password is shorter than {SHORTEST} characters")
    return password
