"""What policies/README.md says, a second time: for a mail, policy files as texts, and the keys that there are.
Written from that document alone; nothing of relay/ is used here.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from tests.testlib.address_reference import Address, addresses_in, folded, local_of, sender_of

ORDER = ("plaintext", "smime", "rsa", "rsa+aes", "pqc", "pqc+aes", "aes", "otp")
NUMBERED = {1: "otp", 2: "aes", 3: "pqc", 4: "rsa"}
UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "KiB": 1024, "MiB": 1024 * 1024}
ROUTING = frozenset("%!@")
NO_DOMAINS = ("default.toml", "floors.toml", "groups.toml", "tests.toml")

NOT, MAYBE, SURELY = range(3)
"""How well a condition fits."""

PEOPLE = ("sender", "not_sender", "recipient", "not_recipient")
CONTENT = (
    "subject_tag", "header", "attachment_name",
)  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """A mail as it was generated. `octets` are those of the whole message, `hidden` those of fields that never leave.

    `authors` are the bodies of its From fields; `login` is None where nobody knows whether there was one, "" for none.
    """

    sender: str
    recipients: tuple[str, ...]
    octets: int
    hidden: int = 0
    waited: int = 0
    subject: str = ""
    authors: tuple[str, ...] = ()
    login: str | None = ""
    fields: tuple[str, ...] = ()
    attachment: str = ""
    unclear: bool = False


@dataclass(frozen=True)
class SiteSays:
    """What relay.toml says that policies go by; `takes_from` has the other senders' domains for each peer.

    Without it peers take mail of any sender.
    """

    domains: frozenset[str] = frozenset()
    tag_separators: str = "+"
    max_bounce: int = 32 * 1024
    takes_from: Mapping[str, frozenset[str]] | None = None


@dataclass(frozen=True)
class Ability:
    """What relay and peers can do: layers that cannot be done for a peer, peers without KMEs, and what keys there are.

    `keys` has for each peer and each of "otp" and "aes": "all", "normal" (the rest is kept in reserve), "none". With
    ("smime", "bob") nobody has a certificate.
    """

    cannot: frozenset[tuple[str, str]] = frozenset()
    no_kme: frozenset[str] = frozenset()
    keys: Mapping[tuple[str, str], str] = field(default_factory=dict)


@dataclass(frozen=True)
class ReferenceSettings:
    """What holds in the end; `patience` is for how long mail is held, in seconds."""

    max_size: Mapping[str, int] = field(default_factory=dict)
    patience: float = math.inf
    priority: str = "normal"


@dataclass(frozen=True)
class Said:
    """What the documents say of one recipient; `file` is None where nobody covers them.

    `listed` are the levels as if there were no sizes, `tried` those for which the message is not too large; `source` is
    the file whose list gives the guarantee. The sender may be `ours`, and one whom the peer has `taken`.
    """

    file: str | None
    listed: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()
    settings: ReferenceSettings = ReferenceSettings()
    peer: str | None = None
    source: str = ""
    ours: bool = True
    taken: bool = False

    @property
    def possible(self) -> tuple[str, ...]:
        """Those tried that mail of this sender can have, with the right keys."""
        able = {"plaintext": True, "smime": self.ours}
        return tuple(level for level in self.tried if able.get(level, self.taken))

    def outcome(self, facts: Facts, can: Ability) -> str:
        """The layers, or "in clear", "held", "refused"."""
        if self.file is None:
            return "held"
        if found := self._found(self.tried, can):
            return found
        return "refused" if not self.possible or facts.waited >= self.settings.patience else "held"

    def best(self) -> set[str]:
        """The first level listed: for the smallest message, and for this one."""
        return {"in clear" if each == "plaintext" else each for each in (*self.listed[:1], *self.tried[:1])}

    def _found(self, levels: Sequence[str], can: Ability) -> str:
        for level in levels:
            if level == "plaintext":
                return "in clear"
            if level == "smime" and self.ours and ("smime", "bob") not in can.cannot:
                return level
            if level != "smime" and self.taken and self.peer and (layers := self._layers(self.peer, level, can)):
                return layers
        return ""

    def _layers(self, peer: str, level: str, can: Ability) -> str:
        first, *on_top = level.split("+")
        layers = [first, *on_top]
        if any((layer, peer) in can.cannot for layer in layers):
            return ""
        if layers[-1] in ("otp", "aes"):
            enough = ("all",) if self.settings.priority == "low" else ("all", "normal")
            if peer in can.no_kme or can.keys.get((peer, layers[-1]), "all") not in enough:
                return ""
        return "+".join(layers)


class Reference:
    """All policy files of a directory, as texts by their names."""

    def __init__(self, files: Mapping[str, str], owners: Mapping[str, str], site: SiteSays = SiteSays()) -> None:
        """`owners` gives the peer of each domain."""
        self.files = {name: tomllib.loads(text) for name, text in files.items()}
        self.floors = self.files.pop("floors.toml", {}).get("floor", [])
        self.groups = self.files.pop("groups.toml", {})
        self.files.pop("tests.toml", None)
        self.owners = owners
        self.site = site
        self.today = datetime.now(UTC).date()

    def said(self, facts: Facts, recipient: str) -> Said:
        """Of one recipient of the mail."""
        to = local_of(recipient)
        name = next(self._covering(*to), None) if to else None
        if to is None or name is None:
            return Said(None)
        domain = to[1]
        file = self.files[name]
        ours = name.startswith(f"{domain}/") or name == f"{domain}.toml"
        if domain in self.owners and not ours and file["levels"] == ["plaintext"]:
            return Said(None)
        rules = [(rule, name) for rule in file.get("when", []) if self._fit(rule, facts, to)]
        rules += [
            (floor, "floors.toml")
            for floor in self.floors
            if domain not in self.site.domains and self._fit(floor, facts, to)
        ]
        lists = [levels_of(file), *(levels_of(rule) for rule, _ in rules if "levels" in rule)]
        least = max(min(map(ORDER.index, each)) for each in lists)
        every = {level for each in lists for level in each if ORDER.index(level) >= least}
        listed = tuple(sorted(every, key=ORDER.index, reverse=True))
        limits = sizes(file["max_size"]) if "max_size" in file else {}
        octets = facts.octets - facts.hidden
        if not facts.sender:
            limits["otp"] = min(limits.get("otp", self.site.max_bounce), self.site.max_bounce)
        tried = tuple(level for level in listed if octets <= limits.get(level, octets))
        normal = file.get("priority") != "low" or any("priority" in rule for rule, _ in rules)
        settings = ReferenceSettings(
            limits,
            min([patience(each["otherwise"]) for each in (file, *(rule for rule, _ in rules)) if "otherwise" in each], default=math.inf),
            "normal" if normal and facts.sender else "low",
        )  # fmt: skip
        strict = [
            where for rule, where in rules if "levels" in rule and min(map(ORDER.index, levels_of(rule))) == least
        ]
        own = min(map(ORDER.index, levels_of(file))) == least
        peer = file.get("peer") or self.owners.get(domain)
        source = name if own else "" if len(set(strict)) > 1 else strict[0]
        return Said(name, listed, tried, settings, peer, source, *self._sends(facts.sender, peer))

    def _sends(self, sender: str, peer: str | None) -> tuple[bool, bool]:
        """Whether a sender is at a domain of the site, and whether the peer takes their mail."""
        if not sender or self.site.takes_from is None:
            return True, peer is not None
        address = sender_of(sender)
        domain = address.domain if address and not address.literal else ""
        others = self.site.takes_from.get(peer or "", frozenset())
        ours = domain in self.site.domains
        return ours, peer is not None and (ours or "*" in others or domain in others)

    # --- which file ------------------------------------------------------------------------------------------------

    def files_of(self, recipient: str) -> list[tuple[str, Mapping[str, Any]]]:
        """All files that may cover them on some day."""
        to = local_of(recipient)
        return [(name, self.files[name]) for name in self._names(*to)] if to else []

    def _covering(self, local: str, domain: str) -> Iterator[str]:
        return (name for name in self._names(local, domain) if self._counts(self.files[name]))

    def _names(self, local: str, domain: str) -> Iterator[str]:
        names = [f"{domain}/{encoded(local)}.toml"]
        if not ROUTING & set(local):
            if (untagged := self._untagged(local)) is not None:
                names.append(f"{domain}/{encoded(untagged)}.toml")
            names.append(f"{domain}.toml")
            parts = domain.split(".")
            parents = [".".join(parts[start:]) + ".toml" for start in range(1, len(parts))]
            names += [name for name in parents if self.files.get(name, {}).get("subdomains")]
            names = [name for name in names if name not in NO_DOMAINS]
            names.append("default.toml")
        return (name for name in names if name in self.files)

    def _untagged(self, local: str) -> str | None:
        """Without its tag, if it has one."""
        places = [place for place, char in enumerate(local) if char in self.site.tag_separators]
        return local[: places[0]] if places and places[0] else None

    def _counts(self, table: Mapping[str, Any]) -> bool:
        return not ("until" in table and table["until"] < self.today)

    # --- which rules -----------------------------------------------------------------------------------------------

    def _fit(self, rule: Mapping[str, Any], facts: Facts, to: tuple[str, str]) -> int:
        """As its weakest condition."""
        if not self._counts(rule):
            return NOT
        fits = [SURELY]
        for who in ("sender", "recipient"):
            for name in (who, f"not_{who}"):
                if name in rule:
                    patterns = list(self.patterns(rule[name]))
                    people = self._people(who, facts, to, patterns, opposite=name != who)
                    named = [each(patterns) for each in people]
                    fits.append(max(SURELY - fit if name != who else fit for fit in named))
        fits.append(SURELY if _is_so(rule, facts) else NOT)
        return min(fits)

    def patterns(self, value: Any) -> Iterator[str]:
        """The texts of a condition, with the members of groups."""
        for text in texts(value):
            yield from texts(self.groups[text[6:]]) if text.startswith("group:") else [text]

    def _people(
        self, who: str, facts: Facts, to: tuple[str, str], patterns: list[str], *, opposite: bool
    ) -> list[Callable[[list[str]], int]]:
        """For each person how well patterns fit them, at best."""
        if who == "recipient":
            local, domain = to
            if ROUTING & set(local):
                return [_maybe]
            return [lambda patterns: self._fits(patterns, local, domain)]
        people: list[Callable[[list[str]], int]] = []
        if facts.sender:
            people.append(self._person(sender_of(facts.sender), forms=True, opposite=opposite))
        else:
            people.append(lambda patterns: SURELY if "<>" in patterns else NOT)
        found = addresses_in(facts.authors)
        people += [self._person(each, forms=False) for each in found] if found else [_maybe]
        users = [each for each in patterns if each.startswith("login:")]
        if facts.login:
            people.append(lambda patterns: _login_fit(patterns, facts.login or ""))
        elif facts.login is None and users:
            people.append(_maybe)
        return people

    def _person(self, address: Address | None, *, forms: bool, opposite: bool = False) -> Callable[[list[str]], int]:
        if address is None or address.literal or ROUTING & set(address.local):
            return _maybe

        def fit(patterns: list[str]) -> int:
            inner = rewritten(address) if forms else None
            if self._fits(patterns, address.local, address.domain):
                # All for whom it may stand have to be named as well.
                within = self._person(inner.address, forms=True, opposite=opposite) if inner and opposite else None
                return SURELY if within is None or within(patterns) == SURELY else MAYBE
            return MAYBE if inner and self._person(inner.address, forms=True)(patterns) else NOT

        return fit

    def _fits(self, patterns: Iterable[str], local: str, domain: str) -> int:
        untagged = self._untagged(local)
        addresses = [f"{each}@{domain}" for each in (local, untagged) if each is not None]
        named = (folded(each) for each in patterns if each != "<>" and not each.startswith("login:"))
        return SURELY if any(_like(each, addresses) for each in named) else NOT


def _maybe(patterns: list[str]) -> int:
    return MAYBE


def _login_fit(patterns: Iterable[str], login: str) -> int:
    users = [each.removeprefix("login:").casefold() for each in patterns if each.startswith("login:")]
    addresses = [folded(each) for each in patterns if not each.startswith("login:")]
    login = login.casefold()
    if any(_like(each, [login]) for each in (*users, *addresses)):
        return SURELY
    return MAYBE if any(_like(each, [login.split("@")[0]]) for each in users) else NOT


@dataclass(frozen=True)
class Inner:
    """An address within another, or none that could be read."""

    address: Address | None


def rewritten(address: Address) -> Inner | None:
    """What one of the forms stands for, if this is one or begins like one."""
    srs = re.fullmatch(
        r"(?:SRS0[=+-]|SRS1[=+-][^=]+=[^=]+=[=+-])[^=]+=[^=]+=([^=]+)=(.*)", address.local, re.IGNORECASE | re.DOTALL
    )
    if srs:
        return Inner(sender_of(f"{srs[2]}@{srs[1]}"))
    prvs = re.fullmatch(r"(?:prvs=[a-z0-9]+=|btv1==[a-z0-9]+==)(.*)", address.local, re.IGNORECASE | re.DOTALL)
    if prvs:
        return Inner(sender_of(f"{prvs[1]}@{address.domain}"))
    return Inner(None) if re.match(r"SRS[01][=+-]|prvs=|btv1=", address.local, re.IGNORECASE) else None


def _is_so(rule: Mapping[str, Any], facts: Facts) -> bool:
    """What it asks of the message."""
    subject = facts.subject.casefold()
    if "subject_tag" in rule and not any(tag.casefold() in subject for tag in texts(rule["subject_tag"])):
        return False
    if "header" in rule and not any(_has_field(facts, text) for text in texts(rule["header"])):
        return False
    if "attachment_name" in rule:
        blank_line = any("\r\n \r\n" in author for author in facts.authors)
        return (
            facts.unclear
            or blank_line
            or any(
                bool(facts.attachment) and _like(each.casefold(), [facts.attachment.casefold()])
                for each in texts(rule["attachment_name"])
            )
        )
    return True


def _has_field(facts: Facts, text: str) -> bool:
    name, colon, value = (part.strip().casefold() for part in text.partition(":"))
    for each in facts.fields:
        has, _, content = (part.strip().casefold() for part in each.partition(":"))
        if has == name and (not colon or _like(value, [content])):
            return True
    return False


def _like(pattern: str, addresses: Iterable[str]) -> bool:
    """`*` stands for any number of any characters."""
    expression = _expression(pattern)
    return any(expression.fullmatch(each) for each in addresses)


@lru_cache(maxsize=10_000)
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL)


def levels_of(table: Mapping[str, Any]) -> tuple[str, ...]:
    """The list of a file or rule."""
    return tuple(NUMBERED.get(level, level) for level in table["levels"])


def patience(otherwise: str) -> float:
    """For how long mail is held, in seconds."""
    word, _, time = otherwise.partition(" ")
    return seconds(time) if time else {"hold": math.inf, "refuse": 0.0}[word]


def encoded(local: str) -> str:
    """As it stands in the name of a file."""
    plain = "abcdefghijklmnopqrstuvwxyz0123456789-_+."
    signs = ["".join(f"%{octet:02X}" for octet in char.encode()) if char not in plain else char for char in local]
    return "".join(["%2E", *signs[1:]] if local.startswith(".") else signs)


def texts(value: Any) -> list[str]:
    """One text or several."""
    return [value] if isinstance(value, str) else list(value)


def size(value: Any) -> int:
    """Octets."""
    if isinstance(value, int):
        return value
    number, unit = value.split()
    return int(number) * UNITS[unit]


def sizes(value: Mapping[str, Any]) -> dict[str, int]:
    """The limits by level."""
    return {NUMBERED[int(level)] if level.isdigit() else level: size(each) for level, each in value.items()}


def seconds(value: Any) -> float:
    """A time."""
    if isinstance(value, int):
        return value
    number, unit = value.split()
    return float(int(number) * UNITS[unit])
