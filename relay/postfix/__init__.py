"""Looks at a Postfix configuration beside relay.toml and names what is wrong between the two.
Standard: read by Postfix's own postconf(1), postmap(1) and postalias(1); nothing is changed and nothing need run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from relay.config import Config
from relay.postfix import added, milters, past, sizes, way_back, way_in, whole
from relay.postfix.fault import Fault
from relay.postfix.picture import Picture, draw
from relay.postfix.settings import read_settings

__all__ = ["Fault", "faults"]

RULES: tuple[Callable[[Picture], Iterable[Fault]], ...] = (
    way_in.no_way_in,
    way_in.unknown_transport,
    way_in.wrong_protocol,
    way_in.filtered_twice,
    way_in.transport_settings,
    way_in.proxy_settings,
    way_back.no_reinjection,
    way_back.loop,
    way_back.open_to_others,
    way_back.strangers_trusted,
    way_back.restrictions,
    way_back.done_again,
    way_back.rewritten,
    way_back.refused,
    past.services_past,
    past.second_ways_out,
    added.routes,
    added.copies,
    added.dot_forward,
    sizes.sealed_too_large,
    sizes.sealed_not_taken,
    sizes.mailboxes_too_small,
    sizes.bounces_not_header_alone,
    milters.around_the_filter,
    milters.in_order,
    milters.let_pass,
    whole.warnings,
    whole.soft_bounce,
    whole.notices,
    whole.unknown_recipients,
)
TABLE_RULES: tuple[Callable[[Picture], Awaitable[list[Fault]]], ...] = (
    past.bounces_past,
    added.aliases_past,
    added.actions,
)


async def faults(directory: Path, config: Config) -> list[Fault]:
    """Everything that is wrong with the Postfix in `directory` (/etc/postfix), as this relay needs it.

    Raises ConfigError where Postfix is not installed or cannot read its configuration.
    """
    picture = draw(await read_settings(directory), config)
    found = [fault for rule in RULES for fault in rule(picture)]
    for rule in TABLE_RULES:
        found += await rule(picture)
    return list(dict.fromkeys(found))
