"""Looks at a Postfix configuration beside relay.toml and names what is wrong between the two.
It is read by Postfix's own postconf(1), postmap(1) and postalias(1); nothing is changed and nothing need run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from relay.config import Config, TCPAddress
from relay.postfix import (
    bypass,
    content_filter,
    left_over,
    main_cf,
    milters,
    neighbours as filters,
    queue,
    reinjection,
    scanners,
)
from relay.postfix.flow import MailFlow, mail_flow
from relay.postfix.neighbours import Neighbour
from relay.postfix.running import by_former_settings
from relay.postfix.settings import PostfixFault, read_settings

__all__ = ["Neighbour", "PostfixFault", "by_former_settings", "faults", "handed_to", "neighbours"]

RULES: tuple[Callable[[MailFlow], Iterable[PostfixFault]], ...] = (
    left_over.filters,
    left_over.milters,
    content_filter.no_way_in,
    content_filter.unknown_transport,
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
    bypass.second_ways_out,
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
)
TABLE_RULES: tuple[Callable[[MailFlow], Awaitable[list[PostfixFault]]], ...] = (
    bypass.bounces_past,
    bypass.aliases_past,
    bypass.actions,
)


async def faults(directory: Path, config: Config) -> list[PostfixFault]:
    """Everything that is wrong with the Postfix in `directory` (/etc/postfix), as this relay needs it.

    Raises ConfigError where Postfix is not installed or cannot read its configuration.
    """
    flow = mail_flow(await read_settings(directory), config)
    faults = [fault for rule in RULES for fault in rule(flow)]
    for rule in TABLE_RULES:
        faults += await rule(flow)
    faults += await queue.stranded(directory, config)
    return list(dict.fromkeys(faults))


async def neighbours(directory: Path, config: Config) -> list[Neighbour]:
    """The filters of other programs that this Postfix has on this host, each once. Raises what `faults` does."""
    by_address = {each.address: each for each in filters.neighbours(mail_flow(await read_settings(directory), config))}
    return list(by_address.values())


async def handed_to(directory: Path, config: Config) -> set[TCPAddress | Path]:
    """The relay's own addresses that this Postfix hands mail to, or asks as a milter. Raises what `faults` does."""
    return set(mail_flow(await read_settings(directory), config).handed_to)
