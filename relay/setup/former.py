"""Removes from a Postfix what setup wrote for another integration, and settings that lead to former listeners.
Values from setup's backups are restored; later edits of an administrator are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from relay.config import Config
from relay.config.values import TCPAddress
from relay.postfix.flow import is_loopback, service_address
from relay.postfix.ours import BOUNCES, TRANSPORT, directions, led_here, stale_filter, stale_milter
from relay.postfix.settings import PostfixSettings, split_list
from relay.setup.postfix_lines import Key, Lines, snapshot

FILTERS = ("content_filter", "smtpd_proxy_filter", "relayhost", "default_transport", "relay_transport")
MILTERS = ("smtpd_milters", "non_smtpd_milters")
LOG_NAMES = ("postfix/sealed", "postfix/opened")
"""The syslog_name of services that take mail back from the relay."""
NOTICES = ("bounce/unix", "defer/unix", "trace/unix")


async def as_before(now: Lines, backups: Sequence[Path]) -> Lines:
    """The settings without setup's changes, known from `backups`, oldest first. Raises ConfigError.

    A setting that was changed again is an administrator's, and stays.
    """
    former = dict(now)
    for backup in reversed(backups):
        before, after = [await snapshot(backup / when) for when in ("before", "after")]
        for key in before.keys() | after.keys():
            if before.get(key) != after.get(key) == former.get(key):
                _set(former, key, before.get(key))
    return {key: value for key, value in former.items() if not key[0] or (key[0], "") in former}


def without_stale(lines: Lines, settings: PostfixSettings, config: Config, *, by_filter: bool) -> Lines:
    """The settings without those that lead to former listeners of the relay.

    `by_filter`: Postfix continues to use the transport `qumail`.
    """
    kept = dict(lines)
    for service in settings.services:
        at = service_address(service)
        back = at is not None and led_here(config, TCPAddress(at[0] or "127.0.0.1", at[1]), "back")
        if back and service.overrides.get("syslog_name") in LOG_NAMES and not _handed_back(config, at):
            _take_service(kept, service.key)
    if not by_filter:
        for name in (f"{TRANSPORT}/unix", f"{BOUNCES}/unix"):
            _take_service(kept, name)
        for name in NOTICES:
            if kept.get((name, "cleanup_service_name")) == BOUNCES:
                del kept[name, "cleanup_service_name"]
                kept.pop((name, "internal_mail_filter_classes"), None)
        for key in [key for key in kept if not key[0] and key[1].startswith(f"{TRANSPORT}_")]:
            del kept[key]
    for key, value in list(kept.items()):
        if key[1] in FILTERS and stale_filter(config, value):
            _take_filter(kept, key, settings)
        elif key[1] in MILTERS:
            items = split_list(value)
            left = [item for item in items if not stale_milter(settings, config, address_of(item))]
            if len(left) < len(items):
                _set(kept, key, ", ".join(left) if left or key[0] else None)
    return kept


def address_of(item: str) -> str:
    """The address of a milter, without its settings in braces."""
    return item.strip("{} ").replace(",", " ").split()[0]


def _take_filter(lines: Lines, key: Key, settings: PostfixSettings) -> None:
    """Removes a filter; it becomes empty where a scanner hands mail back, which must not reach the scanner again."""
    service, setting = key
    if _is_back(settings, service):
        lines[key] = ""
        return
    del lines[key]
    if setting == "content_filter" and lines.get((service, "receive_override_options")) == "no_address_mappings":
        del lines[service, "receive_override_options"]


def _is_back(settings: PostfixSettings, key: str) -> bool:
    service = next((each for each in settings.services if each.key == key), None)
    at = service_address(service) if service is not None else None
    return at is not None and is_loopback(at[0])


def _handed_back(config: Config, at: tuple[str, int] | None) -> bool:
    hops: Iterable[object] = (getattr(hop, "address", None) for each in directions(config) for hop in each.next_hop)
    return at is not None and any(isinstance(hop, TCPAddress) and hop.port == at[1] for hop in hops)


def _take_service(lines: Lines, name: str) -> None:
    for key in [key for key in lines if key[0] == name]:
        del lines[key]


def _set(lines: Lines, key: Key, value: str | None) -> None:
    if value is None:
        lines.pop(key, None)
    else:
        lines[key] = value
