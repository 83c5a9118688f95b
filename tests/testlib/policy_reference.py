"""What policies/README.md says, a second time: for a mail, policy files as texts, and the keys that there are.
Written from that document alone; nothing of relay/ is used here.
"""

from __future__ import annotations

import tomllib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

STRENGTH = {"otp": 4, "aes": 3, "pqc": 2, "rsa": 1, "plaintext": 0}
NUMBERED = {1: "otp", 2: "aes", 3: "pqc", 4: "rsa"}
UNITS = {"min": 60, "h": 3600, "d": 86400, "KiB": 1024, "MiB": 1024 * 1024}
QUANTA = ("off", "preferred", "required")
MAX_BOUNCE = 32 * 1024


@dataclass(frozen=True)
class Facts:
    """A mail as it was generated. `octets` are those of the whole message, `hidden` those of its Bcc field."""

    sender: str
    recipients: tuple[str, ...]
    octets: int
    hidden: int = 0
    waited: int = 0
    subject: str = ""
    fields: tuple[str, ...] = ()
    attachment: str = ""
    unclear: bool = False


@dataclass(frozen=True)
class Ability:
    """What relay and peers can do: layers that cannot be done for a peer, peers without KMEs, and what keys there are.

    `keys` has for each peer and each of "otp" and "aes": "all", "normal" (the rest is kept in reserve), "none".
    """

    cannot: frozenset[tuple[str, str]] = frozenset()
    no_kme: frozenset[str] = frozenset()
    keys: Mapping[tuple[str, str], str] = field(default_factory=dict)


@dataclass
class Said:
    """What the documents say of one recipient; `file` is None where nobody covers them. `raised`: floors change it."""

    file: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    peer: str | None = None
    raised: bool = False
    bounce: bool = False

    def outcome(self, facts: Facts, can: Ability) -> str:
        """The layers, or "in clear", "held", "refused"."""
        if self.file is None:
            return "held"
        if self.settings["levels"] == ["plaintext"]:
            return "in clear"
        octets = facts.octets - facts.hidden
        too_large = [level for level in self.settings["levels"] if self._too_large(level, octets)]
        for level in self.settings["levels"]:
            if level not in too_large and self.peer and (layers := self._layers(level, can)):
                return layers
        never = self.peer is None or len(too_large) == len(self.settings["levels"])
        action = self.settings["impossible"] if never and self.settings["impossible"] else self.settings["otherwise"]
        late = self.settings["hold_for"] is not None and facts.waited >= self.settings["hold_for"]
        return "refused" if action == "refuse" or late else "held"

    def _too_large(self, level: str, octets: int) -> bool:
        limit = self.settings["max_size"].get(level)
        return (limit is not None and octets > limit) or (level == "otp" and self.bounce and octets > MAX_BOUNCE)

    def _layers(self, level: str, can: Ability) -> str:
        peer = self.peer or ""
        layers = [level, *[kem for kem in self.settings["kem"] if kem != "ml-kem-1024" and level == "pqc"]]
        if any((layer, peer) in can.cannot for layer in layers):
            return ""

        def key(use: str) -> bool:
            enough = ("all",) if self.settings["priority"] == "low" else ("all", "normal")
            return peer not in can.no_kme and can.keys.get((peer, use), "all") in enough

        if level in ("otp", "aes"):
            return level if key(level) else ""
        if self.settings["quantum"] != "off" and key("aes"):
            return "+".join([*layers, "aes"])
        return "" if self.settings["quantum"] == "required" else "+".join(layers)


class Reference:
    """All policy files of a directory, as texts by their names."""

    def __init__(self, files: Mapping[str, str], owners: Mapping[str, str]) -> None:
        """`owners` gives the peer of each domain."""
        self.files = {name: tomllib.loads(text) for name, text in files.items()}
        self.floors = self.files.pop("floors.toml", {}).get("floor", [])
        self.groups = self.files.pop("groups.toml", {})
        self.owners = owners

    def said(self, facts: Facts, recipient: str) -> Said:
        """Of one recipient of the mail."""
        to = folded(recipient)
        local, _, domain = to.rpartition("@")
        name = next(self._covering(local, domain), None)
        if name is None:
            return Said(None)
        file = self.files[name]
        peer = file.get("peer") or self.owners.get(domain)
        without_message = self._settings(file, None, facts.sender, to)
        own = name.startswith(f"{domain}/") or name == f"{domain}.toml"
        if without_message["levels"] == ["plaintext"] and domain in self.owners and not own:
            return Said(None)
        settings = self._settings(file, facts, facts.sender, to)
        bare = self._settings(file, facts, facts.sender, to, floors=False)
        for each in (settings, bare):
            each["max_size"] = {level: octets for level, octets in each["max_size"].items() if level in each["levels"]}
            each |= {} if facts.sender else {"priority": "low", "impossible": "refuse"}
        return Said(name, settings, peer, settings != bare, not facts.sender)

    def _covering(self, local: str, domain: str) -> Iterator[str]:
        person, tag, _ = local.partition("+")
        names = [f"{domain}/{encoded(local)}.toml"]
        if set(local) & set("%!@"):
            yield from (name for name in names if self._counts(name))
            return
        if tag and person:
            names.append(f"{domain}/{encoded(person)}.toml")
        names.append(f"{domain}.toml")
        yield from (name for name in names if self._counts(name))
        parts = domain.split(".")
        parents = [".".join(parts[start:]) + ".toml" for start in range(1, len(parts))]
        yield from (name for name in parents if self._counts(name) and self.files[name].get("subdomains"))
        if self._counts("default.toml"):
            yield "default.toml"

    def _counts(self, name: str) -> bool:
        return name in self.files and not ended(self.files[name])

    def _settings(
        self, file: Mapping[str, Any], facts: Facts | None, sender: str, recipient: str, *, floors: bool = True
    ) -> dict[str, Any]:
        """What holds; without `facts` no rule applies that looks into the message."""
        base = {
            "levels": named(file["levels"]),
            "quantum": file.get("quantum", "preferred"),
            "max_size": sizes(file.get("max_size", {})),
            "otherwise": file.get("otherwise", "hold"),
            "impossible": file.get("impossible"),
            "hold_for": seconds(file.get("hold_for")),
            "priority": file.get("priority", "normal"),
            "kem": kems(file.get("kem", "ml-kem-1024")),
        }
        rules = [rule for rule in file.get("when", []) if self._applies(rule, facts, sender, recipient)]
        by_sender = [rule for rule in rules if not looks_inside(rule)]
        if by_sender:
            base |= self._set_by(by_sender[0])
        raising = [rule for rule in rules if looks_inside(rule)]
        if floors:
            raising = [rule for rule in self.floors if self._applies(rule, facts, sender, recipient)] + raising
        return self._raised(base, [self._set_by(rule) for rule in raising])

    def _set_by(self, rule: Mapping[str, Any]) -> dict[str, Any]:
        said = {name: rule[name] for name in ("quantum", "otherwise", "impossible", "priority") if name in rule}
        if "levels" in rule:
            said["levels"] = named(rule["levels"])
        if "max_size" in rule:
            said["max_size"] = sizes(rule["max_size"])
        if "hold_for" in rule:
            said["hold_for"] = seconds(rule["hold_for"])
        if "kem" in rule:
            said["kem"] = kems(rule["kem"])
        return said

    def _raised(self, base: dict[str, Any], rules: Sequence[dict[str, Any]]) -> dict[str, Any]:
        lists = [base["levels"], *(rule["levels"] for rule in rules if "levels" in rule)]
        levels = next((each for each in lists if all(never_weaker(each, other) for other in lists)), None)
        if levels is None:
            weakest = max(min(STRENGTH[level] for level in each) for each in lists)
            every = {level for each in lists for level in each if STRENGTH[level] >= weakest}
            levels = sorted(every, key=lambda level: -STRENGTH[level])
        result = base | {"levels": levels}
        for rule in rules:
            result["quantum"] = max(result["quantum"], rule.get("quantum", "off"), key=QUANTA.index)
            result["priority"] = "normal" if rule.get("priority") == "normal" else result["priority"]
            result["kem"] = result["kem"] | rule.get("kem", set())
        counting = [rule for rule in rules if "levels" not in rule or set(rule["levels"]) & set(levels)]
        for name in ("otherwise", "impossible", "hold_for"):
            result[name] = next((rule[name] for rule in counting if name in rule), base[name])
        listing = [rule for rule in counting if "levels" in rule]
        if listing:
            allow = [(base["levels"], base["max_size"])]
            allow += [(rule["levels"], rule.get("max_size", base["max_size"])) for rule in listing]
            result["max_size"] = {}
            for level in levels:
                limits = [limit.get(level) for listed, limit in allow if level in listed]
                if None not in limits:
                    result["max_size"][level] = max(limits)
        return result

    def _applies(self, rule: Mapping[str, Any], facts: Facts | None, sender: str, recipient: str) -> bool:
        if ended(rule):
            return False
        if "sender" in rule and not self._fits(rule["sender"], folded(sender) if sender else "<>"):
            return False
        if "recipient" in rule and not self._fits(rule["recipient"], recipient):
            return False
        return not looks_inside(rule) or (facts is not None and _is_so(rule, facts))

    def _fits(self, patterns: Any, address: str) -> bool:
        untagged = address
        local, _, domain = address.rpartition("@")
        if "+" in local.strip("+"):
            untagged = f"{local.partition('+')[0]}@{domain}"
        for pattern in texts(patterns):
            each = self.groups[pattern[6:]] if pattern.startswith("group:") else [pattern]
            for one in texts(each):
                wanted = one if one == "<>" else folded(one)
                if fnmatchcase(address, wanted) or fnmatchcase(untagged, wanted):
                    return True
        return False


def _is_so(rule: Mapping[str, Any], facts: Facts) -> bool:
    subject = facts.subject.lower()
    if "larger_than" in rule and not facts.octets > size(rule["larger_than"]):
        return False
    if "smaller_than" in rule and not facts.octets < size(rule["smaller_than"]):
        return False
    if "subject_tag" in rule and not any(tag.lower() in subject for tag in texts(rule["subject_tag"])):
        return False
    if "header" in rule and not any(_has_field(facts, text) for text in texts(rule["header"])):
        return False
    if "attachment_name" in rule:
        names = texts(rule["attachment_name"])
        fits = any(facts.attachment and fnmatchcase(facts.attachment.lower(), name.lower()) for name in names)
        return fits or facts.unclear
    return True


def _has_field(facts: Facts, text: str) -> bool:
    name, colon, value = (part.strip().lower() for part in text.partition(":"))
    for each in facts.fields:
        has, _, content = (part.strip().lower() for part in each.partition(":"))
        if has == name and (not colon or fnmatchcase(content, value)):
            return True
    return False


def never_weaker(levels: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the first list leads to nothing weaker than the second one, whatever can be had."""
    for number in range(32):
        had = {level: bool(number >> place & 1) for place, level in enumerate(STRENGTH)} | {"plaintext": True}
        mine = [STRENGTH[level] for level in levels if had[level]]
        theirs = [STRENGTH[level] for level in other if had[level]]
        if mine and mine[0] < (theirs[0] if theirs else min(STRENGTH[level] for level in other)):
            return False
    return True


def looks_inside(rule: Mapping[str, Any]) -> bool:
    """Whether the rule has a condition about the message."""
    return any(name in rule for name in ("subject_tag", "header", "larger_than", "smaller_than", "attachment_name"))


def ended(table: Mapping[str, Any]) -> bool:
    """Whether its last day is over."""
    return "until" in table and bool(table["until"] < datetime.now(UTC).date())


def folded(address: str) -> str:
    """In lower case, composed, without quotes."""
    local, _, domain = address.rpartition("@")
    if local.startswith('"') and local.endswith('"'):
        local = local[1:-1]
    return f"{unicodedata.normalize('NFC', local.lower())}@{domain.lower()}"


def encoded(local: str) -> str:
    """As it stands in the name of a file."""
    plain = "abcdefghijklmnopqrstuvwxyz0123456789-_+."
    return "".join(char if char in plain else "".join(f"%{octet:02X}" for octet in char.encode()) for char in local)


def named(levels: Sequence[Any]) -> list[str]:
    """Levels by their names."""
    return [NUMBERED.get(level, level) for level in levels]


def texts(value: Any) -> list[str]:
    """One text or several."""
    return [value] if isinstance(value, str) else list(value)


def kems(value: Any) -> set[str]:
    """The KEMs of level pqc."""
    return set(texts(value))


def size(value: Any) -> int:
    """Octets."""
    if isinstance(value, int):
        return value
    number, unit = value.split()
    return int(number) * UNITS[unit]


def sizes(value: Any) -> dict[str, int]:
    """The limits by level; one size is for all."""
    if isinstance(value, dict):
        return {NUMBERED[int(level)] if level.isdigit() else level: size(each) for level, each in value.items()}
    return dict.fromkeys(("otp", "aes", "pqc", "rsa"), size(value))


def seconds(value: Any) -> float | None:
    """A time."""
    if value is None or isinstance(value, int):
        return value
    number, unit = value.split()
    return float(int(number) * UNITS[unit])
