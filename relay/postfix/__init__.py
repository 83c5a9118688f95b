"""Checks a Postfix configuration against relay.toml and names the faults.
Reads through Postfix's own postconf(1), postmap(1) and postalias(1); changes nothing, and neither program need run.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from relay.config import Config, TCPAddress
from relay.errors import ConfigError
from relay.files import permissions
from relay.postfix import (
    bypass,
    canary,
    content_filter,
    known,
    left_over,
    main_cf,
    milters,
    neighbours as filters,
    queue,
    reinjection,
    running,
    scanners,
    stops,
    transports,
)
from relay.postfix.flow import MailFlow, mail_flow
from relay.postfix.neighbours import Neighbour
from relay.postfix.running import by_former_settings
from relay.postfix.settings import PostfixFault, PostfixSettings, read_settings
from relay.postfix.tables import Tables, files_of

__all__ = ["Judgement", "Neighbour", "PostfixFault", "by_former_settings", "handed_to", "judge", "judge_all"]

PAST_THE_RELAY = frozenset(
    {
        *("no-way-in", "filter-elsewhere", "bypass", "fallback", "milter-lets-pass", "reinjection-open", "routes"),
        *("copies", "mapped-again", "mapped-behind", "action-bypass", "aliases-bypass", "forward-bypass"),
        *("bounces-bypass", "transport-lost", "action-discards", "sealed-changed"),
        *("answers-changed", "commands-changed", "mapped-everybody", "peer-is-local"),
    }
)
"""Codes of faults by which mail may bypass the relay, arrive unopened, or be discarded: an alarm of a serving relay."""
KEEPS_BACK = frozenset(
    {
        *("transports-deferred", "action-stops", "unknown-transport", "no-reinjection", "loop", "wrong-protocol"),
        *("filter-needs-tls", "reinjection-needs-tls", "left-over", "service-disabled", "slowed", "size-back"),
        *("given-up", "size-stops", "no-arrivals"),
    }
)
"""Codes of faults by which mail waits or is refused without the relay's notice: another alarm.

All other faults concern single mails, waste keys or break signatures; only `check` reports those.
"""
UNREAD, UNJUDGED = "table-unread", "unjudged"
"""Codes for tables and for settings that could not be judged."""
FILES = ("main.cf", "master.cf")

RULES: tuple[Callable[[MailFlow], Iterable[PostfixFault]], ...] = (
    left_over.filters,
    left_over.milters,
    content_filter.no_way_in,
    content_filter.unknown_transport,
    content_filter.lost,
    transports.lost_behind,
    transports.another_program,
    content_filter.unreachable,
    content_filter.wrong_protocol,
    content_filter.filtered_twice,
    content_filter.transport_settings,
    content_filter.proxy_settings,
    reinjection.no_reinjection,
    reinjection.loop,
    reinjection.open_to_others,
    reinjection.strangers_trusted,
    reinjection.restrictions,
    reinjection.done_again,
    reinjection.rewritten,
    reinjection.refused,
    bypass.services_past,
    bypass.misread,
    bypass.elsewhere,
    bypass.second_ways_out,
    bypass.answers_changed,
    bypass.commands_changed,
    bypass.routes,
    bypass.copies,
    bypass.dot_forward,
    main_cf.sealed_too_large,
    main_cf.sealed_not_taken,
    main_cf.mailboxes_too_small,
    main_cf.bounces_not_header_alone,
    milters.around_the_filter,
    milters.in_order,
    milters.let_pass,
    scanners.opened_not_filtered,
    scanners.opened_not_shown,
    scanners.leaving_sealed,
    main_cf.warnings,
    main_cf.soft_bounce,
    main_cf.notices,
    main_cf.delays_untold,
    main_cf.unknown_recipients,
    stops.transports_deferred,
    stops.slowed,
    stops.given_up,
    stops.disabled,
    stops.everybody_refused,
    stops.header_cut,
    stops.nowhere_to_arrive,
    transports.nothing_leaves,
)
TABLE_RULES: tuple[Callable[[MailFlow, Tables], Awaitable[list[PostfixFault]]], ...] = (
    bypass.bounces_past,
    bypass.aliases_past,
    bypass.actions,
    bypass.everybody_mapped,
    bypass.peers_at_home,
    transports.own_returned,
    transports.by_tables,
    transports.past_relayhost,
    stops.actions,
    stops.changed_on_the_way,
)
ASKING_RULES: tuple[Callable[[MailFlow], Awaitable[list[PostfixFault]]], ...] = (
    queue.stranded,
    queue.behind_the_relay,
    canary.refused,
)
"""Rules that ask the queue or the canary address, of which no change of a file tells."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The faults of a Postfix, all files that were read, and how its mail flows."""

    faults: tuple[PostfixFault, ...]
    files: frozenset[Path]
    flow: MailFlow

    @property
    def started(self) -> Path:
        """The file that each start of Postfix writes."""
        return running.master_file(self.flow.settings)

    @property
    def neighbours(self) -> list[Neighbour]:
        """Other programs' filters on this host that this Postfix uses, without duplicates."""
        return list({each.address: each for each in filters.neighbours(self.flow)}.values())

    def among(self, codes: frozenset[str]) -> tuple[PostfixFault, ...]:
        """The faults with one of these codes."""
        return tuple(each for each in self.faults if each.code in codes)

    @property
    def unread(self) -> tuple[PostfixFault, ...]:
        """Faults for tables that this user cannot read."""
        return self.among(frozenset({UNREAD}))


async def judge(directory: Path, config: Config) -> Judgement:
    """Judges the configuration in `directory` (/etc/postfix) by this relay's needs.

    Raises ConfigError if Postfix is not installed, or its configuration is unreadable.
    """
    files = {directory / name for name in FILES}
    for file in sorted(files):
        _refuse_unreadable(file)
    settings = await read_settings(directory)
    tables = Tables(directory, config.postfix.unlisted if config.postfix is not None else ())
    flow = mail_flow(settings, config)
    found = [fault for rule in RULES for fault in rule(flow)]
    for rule in TABLE_RULES:
        found += await rule(flow, tables)
    for table, cause in tables.unread.items():
        text = f"whether it leads mail past the relay cannot be seen: {cause}"
        remedy = "make it readable, or take it out"
        if table in tables.asks_servers:
            remedy = (
                "use one that can be listed (hash, lmdb, texthash), or take it out; if no answer of it is FILTER, "
                f"REDIRECT or BCC: [postfix] unlisted = [{json.dumps(table)}] in relay.toml, and restart the relay"
            )
        found.append(PostfixFault("table-unread", table, text, remedy))
    found += known.unjudged(settings, config.postfix.known if config.postfix is not None else ())
    # Files that Postfix itself writes, such as TLS session caches, do not affect the route of mail.
    of_its_own = Path(settings.value("data_directory"))
    files |= {each for each in files_of(_values(settings)) if not each.is_relative_to(of_its_own)} | tables.files
    return Judgement(tuple(dict.fromkeys(found)), frozenset(files), flow)


async def judge_all(directory: Path, config: Config) -> Judgement:
    """As `judge`, with the faults of its queue and of the canary address."""
    judged = await judge(directory, config)
    found = [await rule(judged.flow) for rule in ASKING_RULES]
    return replace(judged, faults=(*judged.faults, *(fault for faults in found for fault in faults)))


async def handed_to(directory: Path, config: Config) -> set[TCPAddress | Path]:
    """The relay's addresses that this Postfix hands mail to, or asks as a milter. Raises what `judge` raises."""
    return set(mail_flow(await read_settings(directory), config).handed_to)


def _refuse_unreadable(file: Path) -> None:
    """Raises ConfigError with the command that helps: postconf(1) does not say what denies access."""
    if (denial := permissions.denial_at(file)) is not None:
        raise ConfigError(str(denial))


def _values(settings: PostfixSettings) -> Iterator[str]:
    yield from settings.main.values()
    for service in settings.services:
        yield from service.overrides.values()
