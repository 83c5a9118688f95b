"""`qumail-relay check`: tests everything that a relay needs, one by one, and reports each fault.
Prints one line a check; exit status 0 if all are fine, else 1. Without --trial-keys it uses one key of a KME that
reports none, and no others.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile

import click
from rich.console import Console
from rich.text import Text

from relay.audit.chain import why_not_writable
from relay.audit.writing import ANNOUNCED, ANNOUNCED_SUFFIX
from relay.canary.message import canary_address
from relay.canary.post import obstacle
from relay.cli.as_relay import become_the_relays_user, load, relay_rights
from relay.cli.check_alarms import alarm_states, standing_states
from relay.cli.check_kmes import kme_states, not_quantum
from relay.cli.check_listeners import (
    USUAL_POSTFIX,
    handed_states,
    listener_states,
    postfix_states,
    unit_states,
    unnamed_postfix,
)
from relay.cli.check_rights import owner_states, program_state, rights_state
from relay.cli.check_site import State, next_steps, peer_states, planner_of, summary
from relay.cli.check_store import kept_state, secret_state, store_state
from relay.cli.dkim import dkim_findings
from relay.cli.keys import key_receiver_ended, release_of_the_serving_relay, troubles_of_the_serving_relay
from relay.cli.logs import configure_logging
from relay.cli.options import config_option
from relay.cli.output import plain_console, print_json
from relay.cli.quarantine import quarantine_state
from relay.cli.units import INSTALLED, PACKAGE, how_to, how_to_run_what_is_installed, package_state
from relay.config import Config, DirectionSettings, LogSettings
from relay.entry import ListenerModule
from relay.errors import ConfigError, RelayError, StoreUnavailable
from relay.files import permissions
from relay.files.commands import command, named
from relay.files.sqlite import no_room
from relay.forward import NextHop
from relay.identity import PeerCertificates, identity_findings, only_sending, with_documents
from relay.key_receiver import SPOOL
from relay.key_receiver.receiver import replies_in
from relay.policy.findings import files_not_read, in_vain, levels_in_vain, peers_unmarked
from relay.policy.load import PolicyFolder
from relay.process import app, upkeep
from relay.runtime import release
from relay.smime.findings import smime_findings
from relay.status import StatusModule
from relay.store import sent, spool
from relay.store.mapped_file import MappedFile
from relay.store.record_files import contents
from relay.store.secret import SiteSecret
from relay.store.sent import SENT
from relay.store.spool import Spool

HELD = "mail is held (451)"
NAMED = Path("-")
"""Value of `--postfix` without DIR."""


@click.command()
@config_option
@click.option(
    "--postfix",
    "postfix_directory",
    type=click.Path(path_type=Path),
    is_flag=False,
    flag_value=str(NAMED),
    metavar="[DIR]",
    help="Look at the Postfix configured in DIR alone; neither need run. [default: relay.toml's, else /etc/postfix]",
)
@click.option(
    "--trial-keys",
    is_flag=True,
    help="Spend a key for each peer and two more at each KME: does it give keys and keep them? Not beside a relay.",
)
@click.option("--no-next-hops", is_flag=True, help="Leave out the servers behind the relay, which are not set up yet.")
@click.option("--before-start", is_flag=True, help="The relay is not meant to run yet.")
@click.option("--json", "as_json", is_flag=True, help="For programs: a list of findings.")
def check(
    config_file: Path,
    postfix_directory: Path | None,
    trial_keys: bool,
    no_next_hops: bool,
    before_start: bool,
    as_json: bool,
) -> None:
    """Look at configuration, policies, store, quarantine, mailboxes, KMEs and next hops, and say what is wrong.

    It may run beside a serving relay. Without --trial-keys it takes one key of a KME that reports
    none, and no others. It writes nothing but one row, and files
    without a word in them, that show whether store, spools and audit record can be written. All are gone when it ends.
    """
    configure_logging(LogSettings(level="error"))
    started = not (before_start or postfix_directory)
    # Runs before root is given up: processes of the relay's user could trace systemctl if it ran as that user.
    units = list(unit_states(config_file)) if started else []
    if postfix_directory is not None:
        config, states = _postfix_found(config_file, postfix_directory)
    else:
        config, states = _found(config_file, trial_keys=trial_keys, next_hops=not no_next_hops, before=before_start)
    if started:
        states += units
        states += owner_states(config_file, config) if config is not None else ()
    console = plain_console()
    if as_json:
        print_json([dict(zip(("what", "detail", "problems"), state, strict=True)) for state in states])
    else:
        _print(console, states)
        for line in () if config is None else not_quantum(config):
            console.print(Text.assemble(("NOTE   ", "bold red"), line), soft_wrap=True)
        for step in () if postfix_directory else next_steps(config_file, config, states):
            console.print(Text.assemble(("Next   ", "bold"), step), soft_wrap=True)
    if any(problems for _, _, problems in states):
        sys.exit(1)


def _print(console: Console, states: list[State]) -> None:
    colour = "bold red" if any(problems for *_, problems in states) else "green"
    console.print(Text(summary(states), colour), soft_wrap=True)
    for title, detail, problems in states:
        if not problems:
            console.print(Text.assemble(("ok     ", "green"), (title, "bold"), f"  {detail}"), soft_wrap=True)
        for problem in problems:
            console.print(Text.assemble(("WRONG  ", "bold red"), (title, "bold"), f"  {problem}"), soft_wrap=True)


Found = tuple[Config | None, list[State]]
"""The configuration, or None if it cannot be used, and all findings."""


def _postfix_found(config_file: Path, directory: Path) -> Found:
    """The findings of --postfix alone."""
    try:
        config = load(config_file)
        return config, asyncio.run(_postfix(config, config_file, directory))
    except ConfigError as error:
        return None, [("configuration", str(config_file), tuple(error.problems))]


def _found(config_file: Path, *, trial_keys: bool, next_hops: bool, before: bool) -> Found:
    """All findings. `before` the start without Postfix's, which setup has just reported."""
    try:
        config = load(config_file)
    except ConfigError as error:
        return None, [("configuration", str(config_file), tuple(error.problems))]
    # Runs as root, since the relay's user may not be allowed to read these.
    standing, owner = list(standing_states(config)), list(owner_states(config_file, config))
    try:
        # Runs as root: for root the relay's user counts among the others who can change the program.
        installed = [] if before else [program_state(config_file)]
        # Runs as root, since the relay's user may not be allowed to read Postfix's files and queue.
        beside = [] if before else asyncio.run(_beside(config))
        become_the_relays_user(config_file)
    except ConfigError as error:
        return None, [("configuration", str(config_file), tuple(error.problems)), *owner, *standing]
    try:
        found, states = asyncio.run(_all(config_file, trial_keys, next_hops))
    except OSError as error:
        wrong = permissions.cause(error.filename or config_file, error)
        found, states = None, [("configuration", str(config_file), (wrong,))]
    if found is None:  # a wrong owner comes first: no other remedy works before
        return None, [*owner, *states, *standing, *installed, *beside]
    return found, [*states, *installed, *beside]


async def _postfix(config: Config, config_file: Path, directory: Path) -> list[State]:
    if directory == NAMED:
        directory = config.postfix.directory if config.postfix is not None else USUAL_POSTFIX
    config = _with_known_peers(config)
    states = [state async for state in postfix_states(config, directory)]
    states += [state async for state in handed_states(config, config_file, directory)]
    return [("configuration", str(config_file), ()), *states, *standing_states(config)]


async def _beside(config: Config) -> list[State]:
    """The findings about the Postfix that relay.toml names, or whether it should name one."""
    if config.postfix is None:
        return [await unnamed_postfix(config)]
    return [state async for state in postfix_states(_with_known_peers(config), config.postfix.directory)]


def _with_known_peers(config: Config) -> Config:
    """With the peers of pinned documents, if they can be read: what is wrong with them is a finding of its own."""
    with suppress(ConfigError), relay_rights(config):
        return with_documents(config)[0]
    return config


async def _all(config_file: Path, trial_keys: bool, next_hops: bool = True) -> Found:
    config = None
    try:
        config = load(config_file)
        config, certificates = with_documents(config)
        folders: list[ListenerModule | StatusModule] = [*app.listeners(config).values(), *app.status(config)]
    except ConfigError as error:
        wrong = "configuration", str(config_file), tuple(error.problems)
        return None, [wrong, *(await _store_and_files(config, config_file) if config is not None else ())]
    rights, releases = rights_state(config_file, config), _release_states(config_file, config)
    looked = [state async for state in _states(config, config_file, certificates, folders, trial_keys, next_hops)]
    if key_receiver_ended(config):
        looked.append(("serving relay", "", (f"{upkeep.ALONE}; start it anew: {how_to('start', config_file)}",)))
    return config, [("configuration", str(config_file), ()), rights, *releases, *looked]


async def _store_and_files(config: Config, config_file: Path) -> list[State]:
    """The checks that work even if the peers' documents cannot be used."""
    store, files = await store_state(config, config_file), await asyncio.to_thread(file_states, config)
    return [secret_state(config), store, *files]


async def _states(
    config: Config,
    config_file: Path,
    certificates: Mapping[str, PeerCertificates],
    folders: Collection[ListenerModule | StatusModule],
    trial_keys: bool,
    next_hops: bool,
) -> AsyncIterator[State]:
    now = datetime.now(UTC)
    store = await store_state(config, config_file)
    for state in (_policies(config, certificates), secret_state(config), store):
        yield state
    for state in _canary(config, certificates):
        yield state
    for state in await asyncio.to_thread(file_states, config):
        yield state
    if config.incoming is not None:
        yield "quarantine", *await quarantine_state(config)
    for title, problems in identity_findings(config, now):
        yield title, _identity_place(config, title), problems
    for state in peer_states(config, certificates):
        yield state
    for state in await asyncio.to_thread(lambda: list(smime_findings(config, now))):
        yield state
    listeners = [folder.states(config) for folder in folders]
    for parts in (
        listener_states(config, config_file, folders),
        *listeners,
        dkim_findings(config),
        kme_states(config, trial_keys),
    ):
        async for state in parts:
            yield state
    for kme, peer, trouble in troubles_of_the_serving_relay(config):
        yield f"KME {kme}", "", (f"the relay that serves, for peer {peer}: {trouble}",)
    async for state in alarm_states(config):
        if not (store[2] and state[0] == "alarm store_is_another"):  # already reported by the store's finding
            yield state
    for name, direction in (("outgoing", config.outgoing), ("incoming", config.incoming)):
        if direction is not None and next_hops:
            async for state in _next_hops(name, direction, config.site.hostname):
                yield state


def _identity_place(config: Config, title: str) -> str:
    """The directory of the certificates or of the peers' documents, by the finding's title."""
    if config.identity is None:
        return ""
    return str(config.identity.directory if title == "identity" else config.identity.peers_directory)


def _policies(config: Config, certificates: Mapping[str, PeerCertificates]) -> State:
    directory = config.policies.directory
    try:
        policies = PolicyFolder.of(config).read_tested()
    except ConfigError as error:
        return "policies", str(directory), tuple(error.problems)
    clear = sum(1 for file in policies.files.values() if file.policy.in_clear)
    in_clear = f", {clear} of them PLAINTEXT" if clear else ""
    doubts = list(in_vain(policies, sends=config.outgoing is not None))
    if config.outgoing is not None and not config.policies.shadow:  # in shadow mode nothing is held
        obstacle = planner_of(config, certificates).obstacle_for_peer
        doubts += levels_in_vain(policies, obstacle, only_sending(certificates))
    if config.opens_mail:
        doubts += peers_unmarked(policies)
    problems = tuple(map(str, doubts))
    others = "" if (directory / "default.toml").exists() else "; mail that none of them covers is held"
    if not_read := files_not_read(directory):
        others += f"; {not_read}"
    return "policies", f"{directory}: {len(policies.files)} files{in_clear}{others}", problems


def _canary(config: Config, certificates: Mapping[str, PeerCertificates]) -> Iterator[State]:
    """The peers that the canary asks, and those that policy excludes. Broken policies are reported elsewhere."""
    every, from_ = config.canary.every, canary_address(config.site.domains)
    if every is None:
        return
    with suppress(ConfigError):
        policies = PolicyFolder.of(config).read()
        only_send = only_sending(certificates)
        to = {name: canary_address(peer.domains) for name, peer in config.peers.items() if name not in only_send}
        why = {name: obstacle(policies, from_, each, shadow=config.policies.shadow) for name, each in to.items()}
        asked = ", ".join(to[name] for name, cause in why.items() if not cause) or "nobody"
        problems = tuple(f"peer {name} gets none: {cause}" for name, cause in why.items() if cause)
        yield "canary", f"every {every:.0f} s to {asked}", problems


def file_states(config: Config) -> list[State]:
    """The findings about state directory, spools and audit record. Blocks.

    The checks leave nothing behind and disturb no serving relay.
    """
    return [
        *_state(config),
        kept_state(config),
        *_received(config),
        *_sent(config),
        *_announced(config),
        *_audit(config),
    ]


def _state(config: Config) -> list[State]:
    """Whether the directory is writable and has enough space."""
    directory = existing = config.state_directory.absolute()
    while not existing.exists():
        existing = existing.parent
    try:
        with TemporaryFile(dir=existing):
            problem = no_room(existing)
    except OSError as error:
        problem = f"{existing}: no file can be made there: {error.strerror}: {HELD}"
    will_be_made = "" if existing == directory else ": will be made when the relay first starts"
    return [("state directory", f"{directory}{will_be_made}", (problem,) if problem else ())]


def _received(config: Config) -> list[State]:
    """The received keys that wait for the store, and whether more can be written; nothing without a spool."""
    directory, title = config.state_directory / SPOOL, "received keys"
    until = f"no KME is asked for keys of arriving mail, and such {HELD}"
    if not directory.is_dir():
        return []
    try:
        secret = SiteSecret.load(config.store.secret)
    except (RelayError, OSError):  # reported elsewhere
        return []
    records, problems = _waiting(directory, secret, config.store.secret)
    detail = str(directory)
    try:
        number = sum(len(reply.keys()) for reply in replies_in(records))
        detail += f": {number} keys wait to be taken over into the store"
    except ValueError:
        problems.append(f"{directory}: was written by a newer relay")
    try:
        writer = Spool(directory, secret)
        writer.ready()
        writer.close()
    except StoreUnavailable as error:
        problems.append(f"{error}; until there is, {until}")
    return [(title, detail, tuple(problems))]


def _sent(config: Config) -> list[State]:
    """Whether sent mails can be recorded; nothing if there is no directory yet."""
    directory, title = config.state_directory / SENT, "sent mails"
    return _mapped(directory, sent.SUFFIX, title, f"all {HELD}")


def _announced(config: Config) -> list[State]:
    """Whether mails about to leave can be recorded; nothing if there is no directory yet."""
    until = "a kill costs records of the audit"
    return _mapped(config.state_directory / ANNOUNCED, ANNOUNCED_SUFFIX, "announcements", until)


def _mapped(directory: Path, suffix: str, title: str, until: str) -> list[State]:
    if not directory.is_dir():
        return []
    problems = [_not_read(each.path, each.error) for each in contents(directory, suffix) if each.error]
    try:
        MappedFile(directory, suffix, sent.FILE_OCTETS).discard()
    except StoreUnavailable as error:
        problems.append(f"{error}; until there is, {until}")
    return [(title, str(directory), tuple(problems))]


def _waiting(directory: Path, secret: SiteSecret, secret_file: Path) -> tuple[list[bytes], list[str]]:
    """The records in a spool, and what prevents a relay from taking them over."""
    records, problems = [], []
    for file in contents(directory, spool.SUFFIX, secret):
        records += file.records
        if file.error is not None:
            problems.append(_not_read(file.path, file.error))
        if missing := file.secret_ids.difference(secret.ids):
            ids = ", ".join(sorted(missing))
            problems.append(
                f"{named(file.path)}: holds what is under site secret {ids}, whose line {secret_file} lacks"
            )
    return records, problems


def _not_read(path: Path, error: OSError) -> str:
    return f"{named(path)}: {error.strerror}: no relay reads it: move it away"


def _audit(config: Config) -> list[State]:
    """Whether the record is writable; nothing before the first start."""
    directory = config.audit_directory
    if config.audit.directory is None and not directory.parent.exists():
        return []
    problem = why_not_writable(directory)
    needed = "mail that needs a line in its ledger (weaker than it could be, in clear, released) is held"
    if config.audit.holds:
        needed = f"all {HELD}"
    problems = (f"{directory}: cannot be written: {problem}; until it can, {needed}",) if problem else ()
    return [("audit record", str(directory), problems)]


async def _next_hops(name: str, direction: DirectionSettings, hostname: str) -> AsyncIterator[State]:
    """Greets each next hop as for a mail, with a tenth of the timeout: somebody is waiting."""
    title = f"{name} next hop"
    try:
        next_hop = NextHop(direction.model_copy(update={"timeout": direction.timeout / 10}), hostname)
    except ConfigError as error:
        yield title, "", tuple(error.problems)
        return
    for place, problem in await next_hop.states():
        yield title, place, (problem,) if problem else ()


def _release_states(config_file: Path, config: Config) -> Iterator[State]:
    """A finding if a serving relay says what it runs: whether it is the installed release.

    A process keeps running from deleted files. A new release takes effect only with a restart.
    """
    running, here = release_of_the_serving_relay(config), release.installed()
    if running is None:
        return
    problem = ""
    if not running.now:
        problem = f"runs version {running.version} from {running.directory}, which is gone"
    elif running.now != running.stamp:
        problem = f"runs version {running.version} as it was in {running.directory} before that was installed anew"
    elif running.version != here.version:
        problem = f"runs version {running.version} from {running.directory}"
    if problem:
        problem += (
            f"; installed is version {here.version} in {here.directory}: {how_to_run_what_is_installed(config_file)}"
        )
    problems = [problem] if problem else []
    if Path(running.directory).is_relative_to(PACKAGE) and (state := package_state()) not in (INSTALLED, ""):
        finish = command("dpkg", "--configure", "-a")
        problems.append(f"the Debian package is {state}, not {INSTALLED}: {finish}, or install the package again")
    yield "release", f"{running.version} serves, from {running.directory}", tuple(problems)
