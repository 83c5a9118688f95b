"""The settings of relay.toml that a reload applies, and those that need a restart.
Reloaded settings are validated together with all others; in case of contradictions nothing is applied.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from relay.config.checks import faults
from relay.errors import ConfigError
from relay.files import toml

if TYPE_CHECKING:
    from relay.config import Config

COUNT_AT_ONCE = frozenset({"peers", "aliases", "dkim.keys"})
"""Tables that are reloaded, with everything below them."""


def taken_over(running: Config, read: Config) -> Config:
    """The settings of `running` with the reloadable ones of `read`. Raises ConfigError for contradictions."""
    changes: dict[str, object] = {"peers": read.peers, "aliases": read.aliases}
    if running.dkim is not None and read.dkim is not None:
        changes["dkim"] = running.dkim.model_copy(update={"keys": read.dkim.keys})
    merged = running.model_copy(update=changes)
    if fault_texts := [text for _, text in faults(merged)]:
        raise ConfigError([f"{text} (as long as the relay is not restarted)" for text in fault_texts])
    return merged


def changed(before: toml.Table, after: toml.Table) -> list[str]:
    """The settings that differ, as `outgoing.listen`, or `kmes.two` for a table in only one of them."""
    return list(_changed("", before, after))


def needs_restart(setting: str) -> bool:
    """Whether a setting from `changed` needs a restart."""
    return not any(setting == each or setting.startswith(f"{each}.") for each in COUNT_AT_ONCE)


def _changed(name: str, before: object, after: object) -> Iterator[str]:
    if before == after:
        return
    old, new = _inside(before), _inside(after)
    if name in COUNT_AT_ONCE or not old or not new:
        yield name
        return
    for each in sorted(old.keys() | new.keys()):
        yield from _changed(f"{name}.{each}" if name else each, old.get(each), new.get(each))


def _inside(value: object) -> dict[str, object]:
    """The settings or tables of a table, by name."""
    if isinstance(value, toml.Table):
        return {name: getattr(value, name) for name in type(value).model_fields}
    return dict(value) if isinstance(value, dict) else {}
