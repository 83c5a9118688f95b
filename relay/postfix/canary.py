"""Whether Postfix takes mail for the canary address, where peers tell this site of mail that came to them unsealed.
Standard: relay/FORMAT.md, 11; postconf(5), smtpd_reject_unlisted_recipient and the tables of each class of domains.
"""

from __future__ import annotations

from relay.canary.message import LOCAL_PART, canary_address
from relay.config import Config
from relay.postfix.flow import MailFlow
from relay.postfix.main_cf import CLASSES
from relay.postfix.settings import PostfixFault, split_list
from relay.postfix.tables import Tables

ALIASES = "virtual_alias_maps"


def with_alias(value: str, config: Config) -> str:
    """The value of virtual_alias_maps that lists the canary address, too: as itself, since the relay takes its mail."""
    address = canary_address(config.site.domains)
    alias = f"inline:{{{address}={address}}}"
    return value if alias in value else f"{value or '$virtual_maps'} {alias}"


async def refused(flow: MailFlow) -> list[PostfixFault]:
    """A fault if this Postfix takes mail for the site's first domain, and its tables do not list the address.

    Tables that cannot be asked count as listing it.
    """
    settings, config = flow.settings, flow.config
    address, tables = canary_address(config.site.domains), Tables(settings.directory)
    if config.incoming is None or await _lists(tables, settings.value(ALIASES), address):
        return []
    domain = address.rpartition("@")[2]
    for domains, maps in CLASSES:
        if domain not in (each.lower() for each in split_list(settings.value(domains))):
            continue
        value = settings.value(maps)
        if not value or await _lists(tables, value, address) or tables.unread:
            return []
        text = f"mail for {address} is refused: peers cannot tell this site of mail that leaves past the relay"
        remedy = settings.of(ALIASES).to(with_alias(settings.value(ALIASES), config))
        return [settings.of(maps).fault("canary-refused", text, remedy)]
    return []


async def _lists(tables: Tables, maps: str, address: str) -> bool:
    """Whether one of these tables has the address, all of its domain, or its local part."""
    keys = (address, f"@{address.rpartition('@')[2]}", LOCAL_PART)
    return any([await tables.look_up(each, key) for each in split_list(maps) for key in keys])
