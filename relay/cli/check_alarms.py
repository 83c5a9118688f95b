"""`check` on alarms: active alarms, whether alarms reach somebody, and mail that is held now.
Held mail is a finding even before one of the alarms of relay/counting/alarms.py begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

from relay.cli.check_site import State
from relay.config import Config
from relay.counting.alarms import ALARMS
from relay.counting.amounts import many
from relay.counting.held import DIRECTIONS, Waiting, held_in
from relay.errors import ConfigError
from relay.files.rights import as_owner_of
from relay.files.stamps import read_json
from relay.mail import domain_of
from relay.status.active_alarms import of_the_serving_relay

_SAY_WHO_WAITS = ("mail_held", "mail_stuck")


async def alarm_states(config: Config) -> AsyncIterator[State]:
    """The active alarms, mail that is held now, and whether alarms reach somebody when mail stops."""
    for state in standing_states(config):
        yield state
    async for state in _held(config):
        yield state
    if config.alarms.mail_to or config.alarms.command:
        yield "alarms", ", ".join([*(config.alarms.mail_to or ()), *(config.alarms.command or ())[:1]]), _reach(config)


def standing_states(config: Config) -> Iterator[State]:
    """The active conditions, from the serving relay; without one, those that follow from relay.toml alone."""
    try:
        # The relay's user may have replaced its files by links.
        with as_owner_of(config.state_directory):
            active = of_the_serving_relay(config)
    except (OSError, ConfigError):  # reported with the state directory
        active = []
    for each in active:
        problem = f"{each.alarm.line(each.about)}: {each.cause}; what to do: {each.alarm.what_to_do}"
        yield f"alarm {each.alarm.name} {each.about}".strip(), "", (problem,)
    if config.all_in_clear and "shadow_mode" not in {each.alarm.name for each in active}:
        yield "shadow mode", "", (f"{config.all_in_clear}; what to do: {ALARMS['shadow_mode'].what_to_do}",)


async def _held(config: Config) -> AsyncIterator[State]:
    """Held mail that no alarm reports."""
    file = config.held_file
    try:
        held = await asyncio.to_thread(read_json, file, held_in)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        yield "held mail", "", (f"{file}: cannot be read, so nothing is known of mail that is held: {error}",)
        return
    said = {(each.alarm.name, each.about) for each in of_the_serving_relay(config)}
    waiting = [each for each in await held.waiting() if not _is_said(each, said)]
    for direction in DIRECTIONS:
        ours = [each for each in waiting if each.direction == direction]
        if ours:
            yield f"held mail {direction}", "", (_who_waits(ours),)


def _is_said(waiting: Waiting, said: set[tuple[str, str]]) -> bool:
    names = (*_SAY_WHO_WAITS, "policy_holds") if waiting.cause == "policy" else _SAY_WHO_WAITS
    return any((name, waiting.direction) in said for name in names)


def _who_waits(waiting: list[Waiting]) -> str:
    since = datetime.now(UTC) - timedelta(seconds=max(each.longest for each in waiting))
    recipients = many(sum(each.recipients for each in waiting), "recipient")
    causes = ", ".join(f"{each.cause}: {each.recipients}" for each in waiting)
    problem = f"mail to {recipients} is held since {since:%Y-%m-%d %H:%M} UTC ({causes})"
    return f"{problem}; what to do: {ALARMS['mail_stuck'].what_to_do}"


def _reach(config: Config) -> tuple[str, ...]:
    """A problem if mail about alarms leaves only through outgoing mail, which may have stopped."""
    alarms, domains = config.alarms, config.site.domains
    if alarms.command or config.outgoing is None or any(domain_of(each) in domains for each in alarms.mail_to or ()):
        return ()
    problem = f"no alarm reaches {', '.join(alarms.mail_to or ())} while outgoing mail is stopped: add an address in"
    return (f"{problem} one of our own domains ({', '.join(domains)}) to mail_to, or set a command",)
