"""`qumail-relay groups fetch`: groups of people from a directory into groups.toml, as an edit of the policies.
Standard: exit status 0 done or nothing to do, 1 nothing was changed since something is wrong, 2 wrong usage.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path

import click

from relay.cli.as_relay import relay_rights
from relay.cli.options import config_option
from relay.cli.output import json_option, print_json
from relay.cli.policy_config import exit_with, load_configuration
from relay.config import Config, LDAPSettings
from relay.errors import ConfigError
from relay.files import resolved, written_beside
from relay.files.commands import command
from relay.files.rights import as_owner_of
from relay.groups.ldap import LDAP
from relay.groups.members import DirectoryGroup, People
from relay.groups.written import losses, parts, text_of
from relay.policy.decide import PolicySet
from relay.policy.expected import failures
from relay.policy.load import PolicyFolder
from relay.policy.names import GROUPS_FILE, printable
from relay.policy.walk import Listing, read_file

Groups = Mapping[str, frozenset[str]]
SHOWN = 10
"""Maximum number of names shown of each kind."""


@click.group()
def groups() -> None:
    """Take groups of people from a directory (LDAP) into the policies."""


@groups.command()
@config_option
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@click.option(
    "--accept", "accepted", metavar="NAME", multiple=True, help="Take this group although much of it goes; repeatable."
)
@json_option()
def fetch(config_file: Path, dry_run: bool, accepted: tuple[str, ...], as_json: bool) -> None:
    """Read the groups of [ldap.groups] in the directory, and write them into groups.toml.

    Groups that are typed by hand stay as they are. The file is changed only if the directory answered in full, and no
    group is empty or loses more than half. The policies with the new groups must also be valid and pass their tests.
    The serving relay then goes by the file, as after any edit.
    """
    config = load_configuration(config_file)[0]
    if config.ldap is None:
        exit_with(ConfigError(f"{config_file}: no table [ldap] (deploy/SETTINGS.md), so there is no directory to ask"))
    file = resolved(config.policies.directory) / GROUPS_FILE
    try:
        found = _found(config.ldap)
        text = _read(config)
        by_hand, before = parts(text)
        after = {name: frozenset(group.addresses) for name, group in found.items()}
        _say(found, before, as_json=as_json)
        _check_losses(before, after, accepted)
        new = text_of(by_hand, after)
        with_it = _policies(config, new)
        if not dry_run:
            if new != text:
                _write(config, file, text, new)
            _note(config)
    except ConfigError as error:
        exit_with(ConfigError([*error.problems, f"{file} stays as it is."]))
    except OSError as error:
        exit_with(ConfigError(f"{error.filename or file}: {error.strerror}; {file} stays as it is."))
    if as_json:
        print_json(
            {
                "file": str(file), "changed": new != text, "written": new != text and not dry_run,
                "version": with_it.version, "groups": {name: sorted(each) for name, each in after.items()},
            }
        )  # fmt: skip
    elif new == text:
        click.echo("Nothing has changed.")
    else:
        click.echo(f"{file}: {'would be written' if dry_run else 'written'}.")


def _found(settings: LDAPSettings) -> dict[str, DirectoryGroup]:
    people = People(LDAP(settings).search, settings.base)
    return {name: people.group(dn) for name, dn in settings.groups.items()}


def _read(config: Config) -> str:
    """The text of groups.toml, "" if there is none."""
    with relay_rights(config):
        listing = Listing.of(config.policies.directory)
        return read_file(str(config.policies.directory), GROUPS_FILE).text if GROUPS_FILE in listing.files else ""


def _policies(config: Config, groups_text: str) -> PolicySet:
    """The policies with this text of groups.toml. Raises ConfigError, also if a test of tests.toml fails."""
    directory = config.policies.directory
    with relay_rights(config):
        listing = Listing.of(directory)
        if listing.faults:
            raise ConfigError([each for faults in listing.faults.values() for each in faults])
        texts = {name: read_file(str(directory), name).text for name in listing.files}
    folder = PolicyFolder.of(config)
    policies = folder.read_texts((texts | {GROUPS_FILE: groups_text}).items())
    if failed := failures(folder.tests, policies):
        raise ConfigError(failed)
    return policies


def _check_losses(before: Groups, after: Groups, accepted: Collection[str]) -> None:
    if lost := [(name, what) for name, what in losses(before, after) if name not in accepted]:
        again = command("qumail-relay", "groups", "fetch", *(word for name, _ in lost for word in ("--accept", name)))
        raise ConfigError([*(what for _, what in lost), f"If that is meant: {again}"])


def _write(config: Config, file: Path, before: str, after: str) -> None:
    """Replaces the file at once, as the owner of its directory: root follows no link that they have made."""
    with as_owner_of(file.parent):
        mode = file.stat().st_mode & 0o777 if file.exists() else 0o644
        with written_beside(file, after.encode(), mode) as beside:
            if _read(config) != before:
                raise ConfigError(f"{file} was edited meanwhile: fetch again")
            beside.replace(file)


def _note(config: Config) -> None:
    """That a fetch has succeeded, for the alarm `groups_old`."""
    with relay_rights(config):
        config.groups_fetched_file.write_text(f"{time.time():.0f}\n")


def _say(found: Mapping[str, DirectoryGroup], before: Groups, *, as_json: bool) -> None:
    """Who joins and who leaves; on standard error what could not be taken."""
    for name, group in found.items():
        had = before.get(name, frozenset())
        if not as_json:
            click.echo(f"{name}: {len(group.addresses)} addresses")
            _list("+", sorted(group.addresses - had) if had else [])
            _list("-", sorted(had - group.addresses))
        if group.without:
            click.echo(f"{name}: {len(group.without)} people without an address: {_some(group.without)}", err=True)
        for each in group.unusable[:SHOWN]:
            click.echo(printable(f"{name}: not taken, no address of one person: {each}"), err=True)


def _list(sign: str, addresses: list[str]) -> None:
    for each in addresses[:SHOWN]:
        click.echo(printable(f"  {sign} {each}"))
    if len(addresses) > SHOWN:
        click.echo(f"  {sign} and {len(addresses) - SHOWN} more")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return printable("; ".join(names[:SHOWN])) + more
