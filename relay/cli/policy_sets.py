"""`qumail-relay policy diff` and `install`: what an edit changes, and how it comes into force.
Exit status: 0 fine, 1 something is wrong or, with --strict, weaker than before; codes in JSON are stable.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import click

from relay.cli.as_relay import relay_rights, relays_user
from relay.cli.options import ThereIs, config_option
from relay.cli.output import json_option, plain_console, print_json
from relay.cli.policy_config import exit_with, go_on_as_relay, load_configuration
from relay.cli.policy_print import print_changes
from relay.cli.policy_site import PolicySite, load_site, read_policies
from relay.cli.policy_version import in_force_last
from relay.cli.serving import serves_here
from relay.cli.units import unit_of
from relay.config import Config
from relay.errors import ConfigError
from relay.files import resolved
from relay.files.commands import command
from relay.files.permissions import HOMES
from relay.files.rights import as_owner_of, others_can_write, owner_of
from relay.files.stamps import stamp_of
from relay.policy.compare import Comparison, compare
from relay.policy.decide import PolicySet
from relay.policy.installing import leads_through, write_note
from relay.policy.kept import KeptSets, kept_file
from relay.policy.names import printable
from relay.policy.walk import Listing
from relay.runtime import heap

NOT_IN_UNITS = (*HOMES, "/tmp", "/var/tmp")  # noqa: S108 - named, not used
"""Directories that a unit with ProtectHome=yes and PrivateTmp=yes does not see, or sees others of."""
COUNTS_S = 60.0
"""Maximum time until the serving relay goes by an installed set, in seconds."""
_directory = ThereIs(only_directory=True)
_strict = click.option("--strict", is_flag=True, help="Exit with 1 unless nothing can be weaker.")


@click.command()
@config_option
@_strict
@json_option()
@click.argument("old", type=_directory)
@click.argument("new", type=_directory)
def diff(config_file: Path, strict: bool, as_json: bool, old: Path, new: Path) -> None:
    """Say whose mail two sets of policies treat otherwise, up or down.

    It is over all decisions that can differ: levels, holds, clear text, and what must arrive sealed.
    """
    go_on_as_relay(config_file)
    comparison = _compared(*(load_site(config_file, each).policies for each in (old, new)))
    _show(comparison, as_json=as_json)
    if strict and not comparison.proven:
        sys.exit(1)


def _compared(before: PolicySet, after: PolicySet) -> Comparison:
    with heap.collecting_nothing():
        return compare(before, after)


@click.command()
@config_option
@_strict
@json_option()
@click.argument("directory", type=_directory)
def install(config_file: Path, strict: bool, as_json: bool, directory: Path) -> None:
    """Check, test and compare a set of policies, and put it into force.

    It ends when the serving relay goes by them, with all its processes.

    The directory that relay.toml names has to be a link. It is swapped for one to DIRECTORY, which must stay as it is
    from then on. With --strict nothing is swapped where anything would be weaker. What was in force before can be
    installed again in the same way.
    """
    config = load_configuration(config_file)[0]
    _relay_alone_can_change(config_file, config, directory)
    after = load_site(config_file, directory, tested=True)
    link = after.config.policies.directory
    if not link.is_symlink() and stamp_of(link, follow=False) is not None:
        moved = link.with_name(link.name + ".1")
        _fail(
            f"{link} is no link, so it cannot be swapped at once; once: mv {link} {moved} && ln -s {moved.name} {link}"
        )
    with as_owner_of(link.parent):
        _install(after, link, directory, strict=strict, as_json=as_json)


def _install(after: PolicySite, link: Path, directory: Path, *, strict: bool, as_json: bool) -> None:
    """Compares with what is in force, then swaps the link; as the user who may do so."""
    try:
        _wait_for_others(click.get_current_context(), link.parent)
    except OSError as error:
        _fail(f"Not installed: {link.parent}: {error.strerror}")
    before = str(resolved(link)) if link.exists() else None
    if through := _links_through(after, directory, link):
        said = f"{through} leads through {link}, which is about to lead elsewhere"
        _fail(f"Not installed: {printable(said)}: let the link lead to a file of the new set.")
    comparison, proven = _compared_with_present(after)
    if strict and not proven:
        if comparison is not None:
            _show(comparison, as_json=as_json)
        _fail(f"Not installed: {'nothing to compare with' if comparison is None else 'something may be weaker'}.")
    if comparison is not None and not as_json:
        _show(comparison, as_json=False)  # what cannot be said, because nobody reads it, does not happen either
    # What was written since it was read would come into force uncompared.
    if (now := _version_of(after, directory)) != after.policies.version:
        _fail(f"Not installed: {directory} has changed meanwhile ({now}); run this again once it stays as it is.")
    try:
        _swap(link, resolved(directory), after.policies.version)
    except OSError as error:
        _fail(f"Not installed: {link}: {error.strerror}")
    try:
        _last(link.parent)
        if (now := _version_of(after, link)) != after.policies.version:
            _fail(f"Installed: {resolved(directory)}; but it has changed meanwhile, and {link} leads to {now}.")
        counts = _wait_until_it_counts(after)
        if as_json:
            installed = {"directory": str(resolved(directory)), "before": before, "version": after.policies.version}
            print_json(
                installed
                | {"tests": len(after.policies.tests), "in_force": counts}
                | (_as_dict(comparison) if comparison else {})
            )
            return
        said = f"{resolved(directory)}, version {after.policies.version}; {len(after.policies.tests)} tests"
        click.echo(f"Installed: {said}. {'The relay goes by it.' if counts else 'It counts when a relay starts.'}")
        if before is not None:
            click.echo(f"Undo with: {command('qumail-relay', 'policy', 'install', before)}")
    except OSError as error:
        _fail(f"Installed: {resolved(directory)}; but afterwards: {error.strerror}")


def _wait_until_it_counts(after: PolicySite) -> bool:
    """Whether the serving relay goes by the set; False if none serves here. Exits with 1 if it does not in time."""
    end = time.monotonic() + COUNTS_S
    sets = KeptSets(kept_file(after.config))
    while True:
        with relay_rights(after.config):
            if not serves_here(after.config):
                return False
            with suppress(OSError):
                if sets.in_force == after.policies.version:
                    return True
        if time.monotonic() > end:
            _fail(f"Installed; but the relay does not go by it after {COUNTS_S:.0f} s: `qumail-relay check` says why.")
        time.sleep(0.05)


def _relay_alone_can_change(config_file: Path, config: Config, directory: Path) -> None:
    """Exits with 1 where others than root, and those who keep the policies now, could change the set later."""
    place = resolved(directory)
    beside = config.policies.directory.absolute().parent
    if unit_of(config_file) is not None and any(map(place.is_relative_to, NOT_IN_UNITS)):
        _fail(f"Not installed: the unit of the relay does not see {place} (systemd.exec(5)): copy it into {beside}.")
    keepers = {each.uid for each in (owner_of(beside), relays_user(config)) if each is not None}
    if os.geteuid() == 0 and (writer := others_can_write(place, keepers, groups=False)):
        _fail(f"Not installed: {place}: {printable(writer)}: copy it into {beside}, with `cp -r`, as root.")


def _links_through(after: PolicySite, directory: Path, link: Path) -> Path | None:
    """A link of the new set that leads to what is not compared: to the set of before now, and elsewhere afterwards."""
    with relay_rights(after.config):
        listing = Listing.of(resolved(directory))
        paths = (listing.directory / name for name in sorted((*listing.files, *listing.directories)))
        return next((path for path in paths if path.is_symlink() and leads_through(path, link.absolute())), None)


def _version_of(after: PolicySite, directory: Path) -> str:
    """The version of what lies there now, for a person."""
    try:
        return read_policies(after.config, directory).version
    except ConfigError as error:
        return printable(error.problems[0])


def _wait_for_others(context: click.Context, parent: Path) -> None:
    """Until this command ends, nobody else installs: what it compares with is what it swaps. Raises OSError."""
    number = os.open(parent, os.O_RDONLY)
    context.call_on_close(lambda: os.close(number))
    fcntl.flock(number, fcntl.LOCK_EX)


def _compared_with_present(after: PolicySite) -> tuple[Comparison | None, bool]:
    """What changes, None where there is nothing to compare with; and whether it is shown that nothing gets weaker.

    The set in force is not always that of the files: what is wrong or not finished there, the relay holds back. Where
    they differ the set is compared with both. What is given is the first comparison that shows something weaker.
    """
    config = after.config
    present: dict[str, tuple[PolicySet, str]] = {}
    present_known = True
    try:
        if (in_force := in_force_last(config)) is not None:
            present[in_force.version] = in_force, f"the set in force, version {in_force.version},"
    except ConfigError as error:
        click.echo(f"Not compared with the set in force: {printable(error.problems[0])}", err=True)
        present_known = False
    try:
        files = read_policies(config)
        present.setdefault(files.version, (files, f"what the files of {config.policies.directory} say"))
    except ConfigError as error:  # which may be just what is being fixed
        click.echo(f"Not compared: what is there now cannot be used: {printable(error.problems[0])}", err=True)
    found = [(_compared(each, after.policies), called) for each, called in present.values()]
    shown, with_what = next((each for each in found if not each[0].proven), found[0] if found else (None, ""))
    if len(found) > 1:
        said = f"{found[0][1]} is not {found[1][1]}. Compared with both; here with {with_what}:"
        click.echo(printable(said[0].upper() + said[1:]), err=True)
    return shown, present_known and shown is not None and shown.proven


def _fail(why: str) -> NoReturn:
    exit_with(ConfigError(why))


def _swap(link: Path, directory: Path, version: str) -> None:
    """The link leads to the directory from one moment to the next. Raises OSError where it does not."""
    beside = link.with_name(f".{link.name}.new")
    beside.unlink(missing_ok=True)  # of one that was killed here
    beside.symlink_to(directory)
    try:
        _note(link, beside, version)
        os.sync()  # the files themselves, before anything leads to them
        beside.replace(link)
    except OSError:
        beside.unlink()
        raise


def _note(link: Path, beside: Path, version: str) -> None:
    """Writes the installer's name beside the link, for the relay; otherwise the link's owner counts."""
    try:
        write_note(link, beside, version)
    except OSError as error:
        click.echo(f"Who installs this is not noted beside {link}: {error.strerror}", err=True)


def _last(parent: Path) -> None:
    """What was swapped here outlives a loss of power. Raises OSError."""
    number = os.open(parent, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _show(comparison: Comparison, *, as_json: bool) -> None:
    if as_json:
        print_json(_as_dict(comparison))
        return
    console = plain_console()
    changes = [
        (each.direction, [each.recipients, each.senders, each.message, "; ".join(each.changed)])
        for each in comparison.differences
    ]
    print_changes(console, ("Mail to", "From", "Message", "What changes"), changes)
    number = len(comparison.differences)
    console.print(f"{number} decisions differ." if number != 1 else "1 decision differs.")


def _as_dict(comparison: Comparison) -> dict[str, Any]:
    return {
        "differences": [asdict(each) for each in comparison.differences],
        "weaker": comparison.weaker,
        "proven": comparison.proven,
    }
