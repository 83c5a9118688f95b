"""`qumail-relay check`: everything that a relay needs, tried one by one, and what is wrong with it.
Standard: one line a check; exit status 0 when all are fine, 1 otherwise. No key is spent unless that is asked for.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from relay import app, postfix
from relay.cli.check_files import file_states
from relay.cli.check_mailboxes import mailbox_states
from relay.cli.check_submission import submission_states
from relay.cli.dkim import dkim_findings
from relay.cli.keys import key_receiver_ended, troubles_of_the_serving_relay
from relay.cli.logs import configure_logging
from relay.cli.options import config_option
from relay.cli.quarantine import existing_store, quarantine_state
from relay.config import KME, Config, Direction, Log, load_config
from relay.errors import ConfigError, RelayError, StoreUnavailable
from relay.forward import NextHop
from relay.identity import identity_findings
from relay.keys.build import km_client
from relay.keys.client import KMEClient
from relay.keys.replies import USUAL_KEY_BITS, KeyStatus
from relay.keys.undelivered import remembered
from relay.policy.findings import kems_not_here, peers_held
from relay.policy.load import PolicyFolder
from relay.store import SiteSecret, Store, open_store, transport_problem
from relay.store.secret import SECRET_LENGTH


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `problems` is empty where all is well."""

    what: str
    detail: str
    problems: tuple[str, ...] = ()


@click.command()
@config_option
@click.option(
    "--postfix",
    "postfix_directory",
    type=click.Path(path_type=Path),
    is_flag=False,
    flag_value="/etc/postfix",
    metavar="[DIR]",
    help="Look at the Postfix configured in DIR (/etc/postfix) instead; neither need run.",
)
@click.option(
    "--trial-keys",
    is_flag=True,
    help="Spend two keys at each KME to see whether it keeps keys until the peer fetches them; not beside a relay.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs: a list of findings.")
def check(config_file: Path, postfix_directory: Path | None, trial_keys: bool, as_json: bool) -> None:
    """Look at configuration, policies, store, quarantine, mailboxes, KMEs and next hops, and say what is wrong.

    It may run beside a serving relay: without --trial-keys it takes no key, and it writes nothing but one row, and
    files without a word in them, that show whether store, spools and ledger can be written; all are gone when it ends.
    """
    configure_logging(Log(level="error"))
    looking = _postfix(config_file, postfix_directory) if postfix_directory else _all(config_file, trial_keys)
    findings = asyncio.run(looking)
    console = Console()
    if as_json:
        console.print_json(data=[asdict(finding) for finding in findings])
    else:
        for finding in findings:
            _print(console, finding)
    if any(finding.problems for finding in findings):
        sys.exit(1)


async def _postfix(config_file: Path, directory: Path) -> list[Finding]:
    try:
        config = load_config(config_file)
    except ConfigError as error:
        return [Finding("configuration", str(config_file), tuple(error.problems))]
    try:
        problems = tuple(map(str, await postfix.faults(directory, config)))
    except ConfigError as error:
        problems = tuple(error.problems)
    return [Finding("configuration", str(config_file)), Finding("Postfix", str(directory), problems)]


async def _all(config_file: Path, trial_keys: bool) -> list[Finding]:
    try:
        config, _ = app.with_documents(load_config(config_file))
    except ConfigError as error:
        return [Finding("configuration", str(config_file), tuple(error.problems))]
    return [Finding("configuration", str(config_file)), *[finding async for finding in _findings(config, trial_keys)]]


async def _findings(config: Config, trial_keys: bool) -> AsyncIterator[Finding]:
    yield _policies(config)
    yield _secret(config)
    yield await _store(config)
    for what, detail, problems in await asyncio.to_thread(file_states, config):
        yield Finding(what, detail, problems)
    if config.incoming is not None:
        yield Finding("quarantine", *await quarantine_state(config))
    for what, problems in identity_findings(config, datetime.now(UTC)):
        yield Finding(what, "", problems)
    async for what, detail, problems in submission_states(config, datetime.now(UTC)):
        yield Finding(what, detail, problems)
    async for what, detail, problems in dkim_findings(config):
        yield Finding(what, detail, problems)
    async for what, detail, problems in mailbox_states(config):
        yield Finding(what, detail, problems)
    async for finding in _kmes(config, trial_keys):
        yield finding
    if key_receiver_ended(config):
        yield Finding("serving relay", "", (f"{app.ALONE}: a service manager does so, else `qumail-relay serve`",))
    for kme, peer, trouble in troubles_of_the_serving_relay(config):
        yield Finding(f"KME {kme}", "", (f"the relay that serves, for peer {peer}: {trouble}",))
    for name, direction in (("outgoing", config.outgoing), ("incoming", config.incoming)):
        if direction is not None:
            async for finding in _next_hops(name, direction, config.site.hostname):
                yield finding


def _policies(config: Config) -> Finding:
    directory = config.policies.directory
    try:
        policies = PolicyFolder(directory, config.peer_domains, max_bounce=config.max_bounce).read_tested()
    except ConfigError as error:
        return Finding("policies", str(directory), tuple(error.problems))
    clear = sum(1 for file in policies.files.values() if file.policy.in_clear)
    in_clear = f", {clear} of them PLAINTEXT" if clear else ""
    problems = tuple(map(str, (*peers_held(policies), *kems_not_here(policies))))
    return Finding("policies", f"{directory}: {len(policies.files)} files{in_clear}", problems)


def _secret(config: Config) -> Finding:
    path = config.store.secret
    if not path.exists():
        return Finding("store secret", f"{path}: will be made when the relay first starts")
    try:
        SiteSecret.load(path)
    except RelayError as error:
        return Finding("store secret", str(path), (str(error),))
    return Finding("store secret", str(path))


async def _store(config: Config) -> Finding:
    """How it is reached, and whether it can be written."""
    where = config.store.database
    try:
        problem = transport_problem(where)
    except ConfigError as error:
        return Finding("store", "", tuple(error.problems))
    detail = str(where) if isinstance(where, Path) else "PostgreSQL"
    problems = [problem] if problem else []
    try:
        async with existing_store(config) as store:
            if store is not None:
                problems += await _missing_secrets(store, config)
                await store.received.ready()
        if not config.store.secret.exists() and isinstance(where, Path) and where.exists() and where.stat().st_size:
            # A relay that starts makes a fresh secret, and this one stands for that: it seals nothing here.
            async with await open_store(where, SiteSecret(os.urandom(SECRET_LENGTH))) as store:
                problems += await _missing_secrets(store, config)
    except StoreUnavailable as error:
        problems.append(f"cannot be written: {error}; until it can, mail is held and no KME is asked for keys")
    except ConfigError:
        pass  # which is found elsewhere
    return Finding("store", detail, tuple(problems))


async def _missing_secrets(store: Store, config: Config) -> list[str]:
    return [
        f"{rows} keys and messages are under site secret {secret_id}, whose line {config.store.secret} lacks: put it "
        "back, as in the file of the relay that wrote them; until then mail that needs them is held"
        for secret_id, rows in (await store.missing_secrets()).items()
    ]


async def _kmes(config: Config, trial_keys: bool) -> AsyncIterator[Finding]:
    """Each KME is asked for the status of each peer whose keys it has, and tried with keys of the first if wanted."""
    for name, kme in config.kmes.items():
        what = f"KME {name}"
        try:
            client = km_client(name, kme.model_copy(update={"retry_attempts": 0}))
        except ConfigError as error:
            yield Finding(what, kme.url, tuple(error.problems))
            continue
        async with client:
            untried = trial_keys
            for peer_name, peer in config.peers.items():
                if kme.group not in peer.kme_groups:
                    continue
                try:
                    status = await client.check_key_status(peer.sae_id)
                except RelayError as error:
                    yield Finding(what, kme.url, (f"{type(error).__name__}: {error}",))
                    break
                detail = f"{kme.url}: {status.stored_key_count} keys for peer {peer_name}"
                yield Finding(what, detail + _half_known(kme, status))
                if untried:
                    untried = False
                    yield await _tried(what, config, kme, client, status, peer.sae_id)
            if ending := client.ending_certificates(datetime.now(UTC)):
                yield Finding(f"{what}: certificates", "", tuple(ending))


async def _tried(what: str, config: Config, kme: KME, client: KMEClient, status: KeyStatus, slave_sae: str) -> Finding:
    """Whether keys that a peer has not fetched are still there when more were asked for; relays that start know it."""
    what += ": undelivered keys"
    own_sae = config.site.sae_id
    try:
        keeps = await client.keeps_undelivered(slave_sae, own_sae)
    except RelayError as error:
        return Finding(what, "", (f"{type(error).__name__}: {error}",))
    with suppress(RelayError):  # of the store, which is looked at elsewhere
        async with existing_store(config) as store:
            if store is not None:
                await remembered(store.trials, (client.url, own_sae, slave_sae), status, keeps)
    if keeps is False and not kme.one_batch_at_a_time:
        return Finding(what, "", ("it drops them when more are asked for: set one_batch_at_a_time = true",))
    told = {True: "kept", False: "dropped; one batch at a time is drawn", None: "this KME cannot be tried so"}
    return Finding(what, told[keeps])


def _half_known(kme: KME, status: KeyStatus) -> str:
    """Where keys of a pad, of which the wire shows all octets but 16, may be named as key-encryption keys of 32."""
    if kme.use != "both" or (status.max_key_size or status.key_size or USUAL_KEY_BITS) > USUAL_KEY_BITS:
        return ""
    return (
        f"; its keys of {USUAL_KEY_BITS} bits serve otp and aes, so who reads the wire may know half of one "
        'at level aes: write use = "otp" or use = "aes" at both sites where that is too little'
    )


async def _next_hops(name: str, direction: Direction, hostname: str) -> AsyncIterator[Finding]:
    """Each is greeted as for a mail, in a tenth of the usual time: somebody is waiting."""
    what = f"{name} next hop"
    try:
        next_hop = NextHop(direction.model_copy(update={"timeout": direction.timeout / 10}), hostname)
    except ConfigError as error:
        yield Finding(what, "", tuple(error.problems))
        return
    for place, problem in await next_hop.look():
        yield Finding(what, place, (problem,) if problem else ())


def _print(console: Console, finding: Finding) -> None:
    if not finding.problems:
        console.print(Text.assemble(("ok     ", "green"), (finding.what, "bold"), f"  {finding.detail}"))
    for problem in finding.problems:
        console.print(Text.assemble(("WRONG  ", "bold red"), (finding.what, "bold"), f"  {problem}"), soft_wrap=True)
