"""The part of groups.toml that comes from a directory; what stands above it is typed by hand and stays as it is.
Standard: TOML 1.0; policies/README.md has the form of groups.toml.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Iterator, Mapping

from relay.errors import ConfigError

MARK = "# From the directory, by `qumail-relay groups fetch`: edits below this line are lost."


def parts(text: str) -> tuple[str, dict[str, frozenset[str]]]:
    """What is typed by hand, and the groups below the mark. Raises ConfigError if these cannot be read."""
    above, mark, below = text.partition(MARK)
    if not mark:
        return text, {}
    try:
        groups = {name: frozenset(addresses) for name, addresses in tomllib.loads(below).items()}
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise ConfigError(f"below its mark: {error}") from error
    return above, groups


def text_of(by_hand: str, groups: Mapping[str, Collection[str]]) -> str:
    """The whole file. Raises ConfigError if a group is typed by hand as well."""
    try:
        twice = tomllib.loads(by_hand).keys() & groups.keys()
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(error)) from error
    if twice:
        raise ConfigError(f"{', '.join(sorted(twice))}: typed by hand above the mark as well; remove it there")
    lines = [MARK]
    for name, addresses in sorted(groups.items()):
        lines += [f"{name} = [", *(f"    {json.dumps(each, ensure_ascii=False)}," for each in sorted(addresses)), "]"]
    above = by_hand.rstrip("\n")
    return "\n".join([*([above, ""] if above else []), *lines, ""])


def losses(before: Mapping[str, Collection[str]], after: Mapping[str, Collection[str]]) -> Iterator[tuple[str, str]]:
    """Each group that would lose more than half of its addresses, or all, or has none; and that in words."""
    for name, addresses in after.items():
        had = frozenset(before.get(name, ()))
        lost = len(had - frozenset(addresses))
        if not addresses:
            yield name, f"{name}: nobody in it has an address" + (f"; it had {len(had)}" if had else "")
        elif 2 * lost > len(had):
            yield name, f"{name}: {lost} of {len(had)} addresses would go"
    for name in before.keys() - after.keys():
        yield name, f"{name}: [ldap.groups] names it no more; {len(before[name])} addresses would go"
