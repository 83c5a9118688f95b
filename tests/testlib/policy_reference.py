"""What policies/README.md says, a second time: for a mail, policy files as texts, and the keys that there are.
Written from that document alone; nothing of relay/ is used here.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.testlib.address_reference import Address, addresses_in, folded, local_of, sender_of

STRENGTH = {"otp": 4, "aes": 3, "pqc": 2, "rsa": 1, "plaintext": 0}
NUMBERED = {1: "otp", 2: "aes", 3: "pqc", 4: "rsa"}
UNITS = {"min": 60, "h": 3600, "d": 86400, "KiB": 1024, "MiB": 1024 * 1024}
QUANTA = ("off", "preferred", "required")
ROUTING = frozenset("%!@")
NO_DOMAINS = ("default.toml", "floors.toml", "groups.toml", "tests.toml")

NOT, MAYBE, SURELY = range(3)
"""How well a condition fits."""

SENDER = ("sender", "not_sender")
ENVELOPE = (*SENDER, "recipient", "not_recipient")
PEOPLE = (*ENVELOPE, "author", "not_author", "login", "not_login")
CONTENT = (
    "subject_tag", "header", "larger_than", "smaller_than", "attachment_type", "attachment_name",
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
    """What relay.toml says that policies go by."""

    domains: frozenset[str] = frozenset()
    tag_separators: str = "+"
    max_bounce: int = 32 * 1024


@dataclass(frozen=True)
class Ability:
    """What relay and peers can do: layers that cannot be done for a peer, peers without KMEs, and what keys there are.

    `keys` has for each peer and each of "otp" and "aes": "all", "normal" (the rest is kept in reserve), "none".
    """

    cannot: frozenset[tuple[str, str]] = frozenset()
    no_kme: frozenset[str] = frozenset()
    keys: Mapping[tuple[str, str], str] = field(default_factory=dict)


@dataclass(frozen=True)
class ReferenceSettings:
    """What a file or rule sets; None is what it does not say."""

    levels: tuple[str, ...] | None = None
    quantum: str | None = None
    max_size: Mapping[str, int] | None = None
    otherwise: str | None = None
    impossible: str | None = None
    hold_for: float | None = None
    priority: str | None = None
    kem: frozenset[str] | None = None
    name: str = ""

    def over(self, other: ReferenceSettings) -> ReferenceSettings:
        """These, and the other's where these say nothing."""
        return ReferenceSettings(*(getattr(other if getattr(self, each) is None else self, each) for each in _FIELDS))


_FIELDS = tuple(ReferenceSettings.__dataclass_fields__)
DEFAULTS = ReferenceSettings(None, "preferred", {}, "hold", None, None, "normal", frozenset({"ml-kem-1024"}))


@dataclass(frozen=True)
class Said:
    """What the documents say of one recipient; `file` is None where nobody covers them.

    `listed` are the levels as if there were no sizes, `tried` those for which the message is not too large; `source` is
    the file that says which are tried, and "" where the document leaves open which it is, or sizes have a part in it.
    """

    file: str | None
    listed: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()
    settings: ReferenceSettings = DEFAULTS
    peer: str | None = None
    source: str = ""

    def outcome(self, facts: Facts, can: Ability) -> str:
        """The layers, or "in clear", "held", "refused"."""
        if self.file is None:
            return "held"
        if found := self._found(self.tried, can):
            return found
        never = self.peer is None or not self.tried or self.tried == ("plaintext",)
        action = self.settings.impossible if never and self.settings.impossible else self.settings.otherwise
        late = self.settings.hold_for is not None and facts.waited >= self.settings.hold_for
        return "refused" if action == "refuse" or late else "held"

    def best(self) -> set[str]:
        """What it would be with all keys: for the smallest message, and for this one."""
        return {self._found(self.listed, Ability()), self._found(self.tried, Ability())}

    def _found(self, levels: Sequence[str], can: Ability) -> str:
        for level in levels:
            if level == "plaintext":
                return "" if self.settings.quantum == "required" else "in clear"
            if self.peer and (layers := self._layers(self.peer, level, can)):
                return layers
        return ""

    def _layers(self, peer: str, level: str, can: Ability) -> str:
        more = [kem for kem in self.settings.kem or () if kem != "ml-kem-1024"] if level == "pqc" else []
        layers = [level, *more]
        if any((layer, peer) in can.cannot for layer in layers):
            return ""

        def key(use: str) -> bool:
            enough = ("all",) if self.settings.priority == "low" else ("all", "normal")
            return peer not in can.no_kme and can.keys.get((peer, use), "all") in enough

        if level in ("otp", "aes"):
            return level if key(level) else ""
        if self.settings.quantum != "off" and key("aes"):
            return "+".join([*layers, "aes"])
        return "" if self.settings.quantum == "required" else "+".join(layers)


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
        by_envelope = self._rules(name, facts, to, envelope_only=True)
        if domain in self.owners and not ours and _strongest(by_envelope) == ("plaintext",):
            return Said(None)
        said = self._decided(name, facts, self._rules(name, facts, to))
        peer = file.get("peer") or self.owners.get(domain)
        return Said(name, said.listed, said.tried, said.settings, peer, said.source)

    # --- which file ------------------------------------------------------------------------------------------------

    def _covering(self, local: str, domain: str) -> Iterator[str]:
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
        return (name for name in names if name in self.files and self._counts(self.files[name]))

    def _untagged(self, local: str) -> str | None:
        """Without its tag, if it has one."""
        places = [place for place, char in enumerate(local) if char in self.site.tag_separators]
        return local[: places[0]] if places and places[0] else None

    def _counts(self, table: Mapping[str, Any]) -> bool:
        return not ("until" in table and table["until"] < self.today) and not (
            "since" in table and table["since"] > self.today
        )

    # --- which rules -----------------------------------------------------------------------------------------------

    def _rules(
        self, name: str, facts: Facts, to: tuple[str, str], *, envelope_only: bool = False
    ) -> list[ReferenceSettings]:
        """The base and all that raises it, in order."""
        file = self.files[name]
        own = settings_of(file, name).over(DEFAULTS)
        base: ReferenceSettings | None = None
        rules: list[ReferenceSettings] = []
        for rule in file.get("when", []):
            fit = self._fit(rule, facts, to, envelope_only=envelope_only)
            said = settings_of(rule, name)
            if any(each in rule for each in (*PEOPLE, *CONTENT) if each not in SENDER):
                rules += [said] if fit else []
            elif fit == SURELY:
                base = base or said.over(own)
            elif fit == MAYBE:
                with_it = said.over(own)
                rules.append(
                    ReferenceSettings(
                        with_it.levels, with_it.quantum, with_it.max_size, said.otherwise, said.impossible,
                        said.hold_for, with_it.priority, with_it.kem, name,
                    )
                )  # fmt: skip
        floors = [
            settings_of(floor, "floors.toml")
            for floor in self.floors
            if self._fit(floor, facts, to, envelope_only=envelope_only)
            and (floor.get("inside") or to[1] not in self.site.domains)
        ]
        return [base or own, *floors, *rules]

    def _fit(self, rule: Mapping[str, Any], facts: Facts, to: tuple[str, str], *, envelope_only: bool = False) -> int:
        """As its weakest condition."""
        if not self._counts(rule):
            return NOT
        if envelope_only and any(each in rule for each in (*PEOPLE, *CONTENT) if each not in ENVELOPE):
            return NOT
        fits = [SURELY]
        for who in ("sender", "author", "login", "recipient"):
            for name in (who, f"not_{who}"):
                if name in rule:
                    turned = name != who
                    patterns = list(self._patterns(rule[name]))
                    people = [each(patterns) for each in self._people(who, facts, to)]
                    fits.append(max(SURELY - fit if turned else fit for fit in people))
        fits.append(SURELY if _is_so(rule, facts) else NOT)
        return min(fits)

    def _patterns(self, value: Any) -> Iterator[str]:
        for text in texts(value):
            yield from texts(self.groups[text[6:]]) if text.startswith("group:") else [text]

    def _people(self, who: str, facts: Facts, to: tuple[str, str]) -> list[Callable[[list[str]], int]]:
        """For each person how well patterns fit them, at best."""
        if who == "recipient":
            local, domain = to
            if ROUTING & set(local):
                return [_maybe]
            return [lambda patterns: self._fits(patterns, local, domain)]
        if who == "login":
            return [lambda patterns: _login_fit(patterns, facts.login)]
        if who == "sender":
            if not facts.sender:
                return [lambda patterns: SURELY if "<>" in patterns else NOT]
            return [self._person(sender_of(facts.sender), forms=True)]
        found = addresses_in(facts.authors)
        if not found:
            return [_maybe]
        return [self._person(each, forms=False) for each in found]

    def _person(self, address: Address | None, *, forms: bool) -> Callable[[list[str]], int]:
        if address is None or address.literal or ROUTING & set(address.local):
            return _maybe

        def fit(patterns: list[str]) -> int:
            if self._fits(patterns, address.local, address.domain):
                return SURELY
            inner = rewritten(address) if forms else None
            return MAYBE if inner and self._person(inner.address, forms=True)(patterns) else NOT

        return fit

    def _fits(self, patterns: Iterable[str], local: str, domain: str) -> int:
        untagged = self._untagged(local)
        addresses = [f"{each}@{domain}" for each in (local, untagged) if each is not None]
        return SURELY if any(_like(folded(each), addresses) for each in patterns if each != "<>") else NOT

    # --- how rules raise -------------------------------------------------------------------------------------------

    def _decided(self, name: str, facts: Facts, base_and_rules: Sequence[ReferenceSettings]) -> Said:
        base, rules = base_and_rules[0], base_and_rules[1:]
        assert base.levels is not None
        listed = _strongest(base_and_rules)
        saying = [rule for rule in rules if rule.levels is None or set(rule.levels) & set(listed)]
        octets = facts.octets - facts.hidden
        left = []
        for each in [base, *rules]:
            if each.levels is not None:
                limits = self._limits(base, each)
                left.append(tuple(level for level in each.levels if octets <= limits.get(level, octets)))
        tried = strongest(left) if all(left) else ()
        bounced = not facts.sender and octets > self.site.max_bounce
        if bounced:
            tried = tuple(level for level in tried if level != "otp")

        def first(key: str) -> Any:
            return next((getattr(rule, key) for rule in saying if getattr(rule, key) is not None), getattr(base, key))

        every = [base, *rules]
        kem = frozenset().union(*(each.kem for each in every if each.kem))
        if not kem <= (base.kem or frozenset()) and "pqc" in tried:
            tried, listed = (
                tuple(level for level in each if level not in ("rsa", "plaintext")) for each in (tried, listed)
            )
        settings = ReferenceSettings(
            quantum=max((each.quantum for each in every if each.quantum), key=QUANTA.index),
            otherwise=first("otherwise"),
            impossible=first("impossible") if facts.sender else "refuse",
            hold_for=first("hold_for"),
            priority="normal" if facts.sender and any(each.priority == "normal" for each in every) else "low",
            kem=kem,
        )
        source = name
        if (
            (tried == ("plaintext",) and settings.quantum == "required")
            or bounced
            or tried != listed
            or (tried != left[0]) != (listed != base.levels)
        ):
            source = ""
        elif tried and tried != left[0]:
            source = next((rule.name for rule in saying if rule.levels and tried[0] in rule.levels), "")
        return Said(name, listed, tried, settings, source=source)

    def _limits(self, base: ReferenceSettings, rule: ReferenceSettings) -> dict[str, int]:
        theirs = base.max_size if rule.max_size is None else rule.max_size
        limits = dict(theirs or {})
        for level in base.levels or ():
            if level in (base.max_size or {}):
                limits[level] = min(limits.get(level, base.max_size[level]), base.max_size[level])  # type: ignore[index]
        return limits


def _maybe(patterns: list[str]) -> int:
    return MAYBE


def _login_fit(patterns: Iterable[str], login: str | None) -> int:
    if login is None:
        return MAYBE
    if not login and "<>" in patterns:
        return SURELY
    return SURELY if any(_like(each.casefold(), [login.casefold()]) for each in patterns) else NOT


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
    prvs = re.fullmatch(r"prvs=[a-z0-9]+=(.*)", address.local, re.IGNORECASE | re.DOTALL)
    if prvs:
        return Inner(sender_of(f"{prvs[1]}@{address.domain}"))
    return Inner(None) if re.match(r"SRS[01][=+-]|prvs=", address.local, re.IGNORECASE) else None


def _strongest(base_and_rules: Sequence[ReferenceSettings]) -> tuple[str, ...]:
    return strongest([each.levels for each in base_and_rules if each.levels is not None])


def strongest(lists: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Of several lists of levels."""
    for each in lists:
        if all(never_weaker(each, other) for other in lists):
            return each
    weakest = max(min(STRENGTH[level] for level in each) for each in lists)
    every = {level for each in lists for level in each if STRENGTH[level] >= weakest}
    return tuple(sorted(every, key=lambda level: -STRENGTH[level]))


def never_weaker(levels: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the first list leads to nothing weaker than the second one, whatever is available."""
    for number in range(16):
        had = {level: bool(number >> place & 1) for place, level in enumerate(NUMBERED.values())} | {"plaintext": True}
        mine = [STRENGTH[level] for level in levels if had[level]]
        theirs = [STRENGTH[level] for level in other if had[level]]
        if mine and mine[0] < (theirs[0] if theirs else min(STRENGTH[level] for level in other)):
            return False
    return True


def _is_so(rule: Mapping[str, Any], facts: Facts) -> bool:
    """What it asks of the message."""
    subject = facts.subject.casefold()
    if "larger_than" in rule and not facts.octets > size(rule["larger_than"]):
        return False
    if "smaller_than" in rule and not facts.octets < size(rule["smaller_than"]):
        return False
    if "subject_tag" in rule and not any(tag.casefold() in subject for tag in texts(rule["subject_tag"])):
        return False
    if "header" in rule and not any(_has_field(facts, text) for text in texts(rule["header"])):
        return False
    if "attachment_name" in rule or "attachment_type" in rule:
        parts = [("text/plain", ""), ("x/y", facts.attachment)] if facts.attachment else [("text/plain", "")]
        return facts.unclear or any(
            any(_like(each.casefold(), [name.casefold()]) for each in texts(rule.get("attachment_name", "*")))
            and (name or "attachment_name" not in rule)
            and any(_like(each.casefold(), [mime]) for each in texts(rule.get("attachment_type", "*")))
            for mime, name in parts
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
    expression = ".*".join(map(re.escape, pattern.split("*")))
    return any(re.fullmatch(expression, each, re.DOTALL) for each in addresses)


def settings_of(table: Mapping[str, Any], name: str) -> ReferenceSettings:
    """What a file or rule sets."""
    return ReferenceSettings(
        levels=tuple(NUMBERED.get(level, level) for level in table["levels"]) if "levels" in table else None,
        quantum=table.get("quantum"),
        max_size=sizes(table["max_size"]) if "max_size" in table else None,
        otherwise=table.get("otherwise"),
        impossible=table.get("impossible"),
        hold_for=seconds(table["hold_for"]) if "hold_for" in table else None,
        priority=table.get("priority"),
        kem=frozenset(texts(table["kem"])) | {"ml-kem-1024"} if "kem" in table else None,
        name=name,
    )


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


def sizes(value: Any) -> dict[str, int]:
    """The limits by level; one size is for all that seal."""
    if isinstance(value, dict):
        return {NUMBERED[int(level)] if level.isdigit() else level: size(each) for level, each in value.items()}
    return dict.fromkeys(NUMBERED.values(), size(value))


def seconds(value: Any) -> float:
    """A time."""
    if isinstance(value, int):
        return value
    number, unit = value.split()
    return float(int(number) * UNITS[unit])
