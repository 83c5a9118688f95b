"""`qumail-relay quarantine`: lists, releases and drops mail that was put aside instead of delivered.
Exit status 0 fine, 1 if a message is missing or could not be delivered, 2 usage; a relay may be serving.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relay.cli.as_relay import load, person
from relay.cli.logs import configure_logging
from relay.cli.options import as_relay_option
from relay.cli.output import Cell, json_option, plain_console, print_json, print_message, print_pairs, print_table
from relay.cli.serving import database_taken_away
from relay.config import Config, LogSettings
from relay.counting.amounts import many, octets
from relay.errors import ConfigError, RelayError, StoreUnavailable
from relay.files.credentials import is_there
from relay.formats import mime
from relay.policy.names import printable
from relay.quarantine import REASONS
from relay.quarantine.triage import SHARES
from relay.runtime.stopping import Stopped, stop_on_signals
from relay.store.database import is_begun
from relay.store.quarantine import Quarantine
from relay.store.quarantine_table import Kept
from relay.store.secret import SECRET_LENGTH, SiteSecret
from relay.store.store import BUSY_TIMEOUT_S, Store, open_store

NEARLY_FULL = 0.8
NAMED = 3
"""Maximum number of recipients listed for a message."""

reason_option = click.option("--reason", type=click.Choice(REASONS), help="Only messages put aside for this reason.")
ids_argument = click.argument("ids", nargs=-1, metavar="ID...")


@click.group()
def quarantine() -> None:
    """Look at arriving mail that could not be opened, release it, or drop it."""


@quarantine.command("list")
@as_relay_option
@reason_option
@json_option("a list of messages")
def list_messages(config_file: Path, reason: str | None, as_json: bool) -> None:
    """List the messages, the oldest first; nothing of their content is shown."""
    kept = asyncio.run(_all(_config(config_file), reason))
    if as_json:
        print_json([_facts(each) for each in kept])
        return
    if kept:
        headings = ("ID", "Arrived (UTC)", "Reason", "From, to, and why it is here")
        print_table(plain_console(), headings, map(_cells, kept))
    click.echo(f"{many(len(kept), 'message')}, {octets(sum(each.size for each in kept))}")


def _cells(kept: Kept) -> Sequence[Cell]:
    about = f"{kept.envelope.sender or '<>'} to {_recipients(kept)}, {octets(kept.size)}: {kept.cause}"
    return kept.id, _when(kept), kept.reason, about


def _recipients(kept: Kept) -> str:
    """The waiting recipients, and the number of those not listed."""
    named = [each.address for each in kept.envelope.recipients]
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return f"{', '.join(named[:NAMED]) or 'nobody'}{more}"


@quarantine.command()
@as_relay_option
@click.option("--raw", is_flag=True, help="The message itself, as it is kept, to standard output.")
@click.option("--headers", is_flag=True, help="Its header.")
@json_option()
@click.argument("name", metavar="ID")
def show(config_file: Path, raw: bool, headers: bool, as_json: bool, name: str) -> None:
    """Show one message: why it is here, where it came from, who waits for it.

    What was `unprotected` can be read: --raw and --headers show content there. Everything else is still sealed.
    """
    if raw + headers + as_json > 1:
        raise click.UsageError("--raw, --headers and --json exclude each other")
    kept, message = asyncio.run(_one(_config(config_file), name, with_message=raw or headers))
    if raw or headers:
        print_message(message if raw else mime.header_of(message))
    elif as_json:
        print_json(_facts(kept))
    else:
        facts = _facts(kept).items()
        print_pairs(
            plain_console(),
            ((name, list(map(str, value if isinstance(value, list) else [value]))) for name, value in facts),
        )


@quarantine.command()
@as_relay_option
@click.option("--all", "everything", is_flag=True, help="All messages, or with --reason all of that kind.")
@reason_option
@click.option("--to", "address", help="Only to this one of the recipients who wait.")
@click.option("--unopened", is_flag=True, help="Hand the sealed message on as it came, without opening it.")
@ids_argument
def release(
    config_file: Path, everything: bool, reason: str | None, address: str | None, unopened: bool, ids: tuple[str, ...]
) -> None:
    """Open the messages with the keys and certificates of today, and deliver them to those who wait.

    A message leaves the quarantine when the next hop has accepted it for all of them. One that cannot be opened
    stays, and why is said. What was `unprotected` is delivered as it is, with its mark.
    """
    _check_selection(ids, everything=everything, reason=reason)

    async def one(decide: Releaser, kept: Kept) -> bool:
        to = [each for each in kept.envelope.recipients if address in (None, each.address)]
        if not to:
            click.echo(f"{kept.id}: {printable(str(address))} does not wait for it", err=True)
            return False
        return _told(kept, await decide.release(kept, to, unopened=unopened))

    _for_each(_config(config_file), ids, reason, one)


@quarantine.command()
@as_relay_option
@click.option("--all", "everything", is_flag=True, help="All messages of one kind; --reason says which.")
@reason_option
@ids_argument
def drop(config_file: Path, everything: bool, reason: str | None, ids: tuple[str, ...]) -> None:
    """Destroy the messages: nobody will get them, and nobody is notified. The ledger keeps who decided that."""
    _check_selection(ids, everything=everything, reason=reason)
    if everything and reason is None:
        raise click.UsageError("say with --reason which kind of messages --all means")

    async def one(decide: Releaser, kept: Kept) -> bool:
        await decide.drop(kept)
        click.echo(printable(f"{kept.id}: dropped; {many(len(kept.envelope.recipients), 'recipient')} will not get it"))
        return True

    _for_each(_config(config_file), ids, reason, one)


async def quarantine_state(config: Config) -> tuple[str, tuple[str, ...]]:
    """For `check`: the contents of the quarantine, and what an administrator should do."""
    if config.quarantine.action == "refuse":
        return "off: what cannot be opened is refused", ()
    try:
        async with existing_store(config) as store:
            totals = await store.quarantine.totals() if store is not None else {}
    except RelayError as error:
        return "", (str(error),)
    if not totals:
        return "empty", ()
    kinds, parties = Counter[str](), Counter[str]()
    for (reason, party, _), total in totals.items():
        kinds[reason] += total.number
        parties[party] += total.size
    named = ", ".join(f"{kinds[reason]} {reason}" for reason in REASONS if reason in kinds)
    waits = "waits" if kinds.total() == 1 else "wait"
    problems = [f"{many(kinds.total(), 'message')} ({named}) {waits} for a decision: qumail-relay quarantine list"]
    share = config.quarantine.max_size // SHARES
    problems += [
        f"nearly full: mail of {f'peer {party}' if party else 'strangers'} has {octets(taken)} and may have "
        f"{octets(share)} (a part of quarantine.max_size); beyond that it is held"
        for party, taken in sorted(parties.items())
        if taken > NEARLY_FULL * share
    ]
    return "", tuple(problems)


if TYPE_CHECKING:
    from relay.quarantine.release import Released, Releaser

    _Decision = Callable[[Releaser, Kept], Awaitable[bool]]


def _for_each(config: Config, ids: Sequence[str], reason: str | None, decision: _Decision) -> None:
    """Applies the decision to each message; exits with 1 if one is missing or stays."""
    if not asyncio.run(_decide(config, ids, reason, decision)):
        sys.exit(1)


async def _decide(config: Config, ids: Sequence[str], reason: str | None, decision: _Decision) -> bool:
    if config.incoming is None:
        raise ConfigError("[incoming] is not set: decide where the relay runs that opens this site's mail")
    fine = True
    # Imported here: this is most of a relay, which the other commands do not need.
    from relay.process import assembly
    from relay.quarantine.release import Releaser

    with stop_on_signals() as stop:
        async with assembly.parts(_impatient(config), prefetch=False) as parts:
            decide = Releaser(
                parts.store.quarantine,
                parts.originals,
                parts.next_hops["incoming"],
                parts.audit,
                config.incoming.max_hops,
                person(),
            )
            for name in ids or [kept.id for kept in await parts.store.quarantine.all(reason)]:
                if (
                    stop.requested
                ):  # an attempt in flight is not interrupted: its mail might be delivered, and later again
                    raise Stopped(f"told to stop; {name} and what comes after it stay in quarantine")
                fine &= await _decided(parts.store.quarantine, decide, name, decision)
    return fine


async def _decided(quarantine: Quarantine, decide: Releaser, name: str, decision: _Decision) -> bool:
    kept = await quarantine.find(name)
    if kept is None:
        click.echo(f"{name}: there is no such message; qumail-relay quarantine list", err=True)
        return False
    try:
        return await decision(decide, kept)
    except RelayError as error:
        from relay.quarantine.release import why_not

        click.echo(printable(f"{name}: stays in quarantine: {why_not(error)}"), err=True)
        return False


def _told(kept: Kept, released: Released) -> bool:
    """Prints the outcome for each recipient; returns whether all were served."""
    for recipient, outcome in zip(released.recipients, released.outcomes, strict=True):
        said = "delivered" if outcome is None else f"not delivered, waits: {outcome}"
        click.echo(printable(f"{kept.id}: {recipient.address}: {said}"), err=outcome is not None)
    return all(outcome is None for outcome in released.outcomes)


def _check_selection(ids: Sequence[str], *, everything: bool, reason: str | None) -> None:
    if bool(ids) == everything:
        raise click.UsageError("name messages by their IDs, or all of them with --all")
    if reason is not None and not everything:
        raise click.UsageError("--reason chooses among --all")


def _config(config_file: Path) -> Config:
    configure_logging(LogSettings(level="error"))
    return load(config_file)


def _impatient(config: Config) -> Config:
    """The configuration without waiting for late keys: a person is at the terminal."""
    kmes = {name: kme.model_copy(update={"lag_patience": 0.0}) for name, kme in config.kmes.items()}
    return config.model_copy(update={"kmes": kmes})


@asynccontextmanager
async def existing_store(config: Config) -> AsyncIterator[Store | None]:
    """The store, or None before the relay's first start; creates nothing.

    Without the site secret, all but what it seals can be read. Raises ConfigError and StoreUnavailable, also if the
    serving relay has another file open.
    """
    database, file = config.store.database, config.store.secret
    if taken_away := await asyncio.to_thread(database_taken_away, config):
        raise StoreUnavailable(taken_away)
    if not await is_begun(database, busy_timeout=BUSY_TIMEOUT_S):
        yield None
        return
    # A random stand-in: nothing is sealed here.
    secret = SiteSecret.load(file) if is_there(file) else SiteSecret(os.urandom(SECRET_LENGTH))
    check, known = config.restore_check_file, config.has_served
    async with await open_store(database, secret, restore_check_file=check, known_here=known) as store:
        yield store


async def _all(config: Config, reason: str | None) -> list[Kept]:
    async with existing_store(config) as store:
        return await store.quarantine.all(reason) if store is not None else []


async def _one(config: Config, name: str, *, with_message: bool) -> tuple[Kept, bytes]:
    async with existing_store(config) as store:
        kept = await store.quarantine.find(name) if store is not None else None
        if store is None or kept is None:
            raise ConfigError(f"{name}: there is no such message; qumail-relay quarantine list")
        return kept, await store.quarantine.message(name) if with_message else b""


def _facts(kept: Kept) -> dict[str, Any]:
    origin = {name: value for name, value in asdict(kept.origin).items() if value}
    return {
        "id": kept.id,
        "reason": kept.reason,
        "cause": kept.cause,
        "arrived": _when(kept),
        "arrivals": kept.arrivals,
        "sender": kept.envelope.sender,
        "recipients": [each.address for each in kept.envelope.recipients],
        "octets": kept.size,
        "protection": kept.protection or ("none" if kept.reason == "unprotected" else "sealed"),
        "party": kept.party,
        "named": kept.named,
        "mail": kept.mail_id,
        "origin": [f"{name}={value}" for name, value in origin.items()],
    }


def _when(kept: Kept) -> str:
    return datetime.fromtimestamp(kept.arrived_at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
