"""What policies/README.md says of a mail, and whether one set of files is weaker than another for it.
Written from that document alone; nothing of relay/ is used here. Messages are described, not read.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from typing import Any

LEVELS = ("otp", "aes", "pqc", "rsa")
STRENGTH = {"otp": 4, "aes": 3, "pqc": 2, "rsa": 1, "plaintext": 0}
NUMBERED = {1: "otp", 2: "aes", 3: "pqc", 4: "rsa"}
QUANTA = ("off", "preferred", "required")
UNITS = {"KiB": 1024, "MiB": 1024 * 1024}
MAX_BOUNCE = 32 * 1024
NOT, MAYBE, SURELY = 0, 1, 2
SEVERITY = {"mark": 1, "quarantine": 2, "refuse": 3}
MET_BY = {
    "otp": {"otp"}, "aes": {"aes", "otp"}, "pqc": {"pqc"}, "rsa": {"rsa", "pqc"}, "sealed": {"otp", "aes", "pqc", "rsa"},
}  # fmt: skip
ARRIVING = ("", "otp", "aes", "pqc", "rsa", "pqc+aes", "rsa+aes")
"""What layers a message may have when it arrives."""


@dataclass(frozen=True)
class GateMail:
    """A mail as it was made up. `authors` is None where From is in doubt, `login` where nobody knows.

    `octets` are those of the whole message, `hidden` those of its Bcc field.
    """

    sender: str
    recipient: str
    day: date
    authors: tuple[str, ...] | None = ("nobody@nowhere.invalid",)
    login: str | None = ""
    subject: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    attachments: tuple[tuple[str, str], ...] = ()
    octets: int = 1000
    hidden: int = 0


@dataclass(frozen=True)
class GateOutcome:
    """The levels that are tried, () where the mail does not leave."""

    levels: tuple[str, ...] = ()
    quantum: str = "off"
    kem: frozenset[str] = frozenset()
    peer: str | None = None
    priority: str = "normal"


@dataclass(frozen=True)
class GateSite:
    """What counts of relay.toml: the peer of each domain, own domains, what separates tags."""

    owners: Mapping[str, str]
    own: frozenset[str] = frozenset()
    separators: str = "+"


@dataclass
class Contribution:
    """One outcome that counts: its levels and limits, None where it says nothing of them."""

    levels: list[str] | None
    limits: dict[str, int] | None
    quantum: str | None = None
    kem: frozenset[str] = frozenset()
    priority: str | None = None


@dataclass
class GatePolicies:
    """All files of a directory, as texts by their names."""

    texts: Mapping[str, str]
    site: GateSite
    files: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.files = {name: tomllib.loads(text) for name, text in self.texts.items()}
        self.floors = self.files.pop("floors.toml", {}).get("floor", [])
        self.groups = {name: listed(each) for name, each in self.files.pop("groups.toml", {}).items()}
        self.tests = self.files.pop("tests.toml", {}).get("test", [])

    def outcome(self, mail: GateMail) -> GateOutcome:
        """What becomes of a mail, as far as policies say."""
        local, domain = split(mail.recipient)
        if routed(local):
            found = next(((name, True) for name in self._own_file(local, domain, mail.day)), None)
        else:
            found = next(self._covering(local, domain, mail.day), None)
        if found is None:
            return GateOutcome()
        name, own = found
        file = self.files[name]
        peer = file.get("peer") or self.site.owners.get(domain)
        if not own and domain in self.site.owners:
            bare, _ = self._levels(file, mail, by_envelope=True)
            if bare == ["plaintext"]:
                return GateOutcome()
        levels, said = self._levels(file, mail)
        if levels == ["plaintext"]:
            clear = GateOutcome(("plaintext",), said.quantum or "", said.kem, None, said.priority or "")
            return GateOutcome() if said.quantum == "required" else clear
        if not levels or peer is None:
            return GateOutcome()
        return GateOutcome(tuple(levels), said.quantum or "off", said.kem, peer, said.priority or "")

    # --- which file -------------------------------------------------------------------------------------------------

    def _own_file(self, local: str, domain: str, day: date) -> Iterator[str]:
        name = f"{domain}/{encoded(local)}.toml"
        if self._counts(name, day):
            yield name

    def _covering(self, local: str, domain: str, day: date) -> Iterator[tuple[str, bool]]:
        """The names of files that cover somebody, and whether each is of the very domain."""
        for each in dict.fromkeys((local, self._untagged(local))):
            yield from ((name, True) for name in self._own_file(each, domain, day))
        if self._counts(f"{domain}.toml", day):
            yield f"{domain}.toml", True
        above = domain
        while above := above.partition(".")[2]:
            if self._counts(f"{above}.toml", day) and self.files[f"{above}.toml"].get("subdomains"):
                yield f"{above}.toml", False
        if self._counts("default.toml", day):
            yield "default.toml", False

    def _counts(self, name: str, day: date) -> bool:
        return name in self.files and in_time(self.files[name], day)

    def _untagged(self, local: str) -> str:
        at = min((local.index(each) for each in self.site.separators if each in local), default=0)
        return local[:at] if at > 0 else local

    # --- what counts ------------------------------------------------------------------------------------------------

    def _levels(
        self, file: Mapping[str, Any], mail: GateMail, *, by_envelope: bool = False
    ) -> tuple[list[str], Contribution]:
        """The levels that are tried, with what else holds; with `by_envelope`, before there is a message."""
        own = over({}, file)
        base, instead = own, False
        raising: list[Contribution] = []
        inside = split(mail.recipient)[1] in self.site.own
        floors = [rule for rule in self.floors if not inside or rule.get("inside")]
        raising += [raises(rule) for rule in floors if self._fit(rule, mail, by_envelope=by_envelope)]
        for rule in file.get("when", []):
            fit = self._fit(rule, mail, by_envelope=by_envelope) if in_time(rule, mail.day) else NOT
            if fit == NOT:
                continue
            if not conditions(rule) <= {"sender", "not_sender"}:
                raising.append(raises(rule))
            elif fit == MAYBE:
                would = over(own, rule)
                raising.append(
                    Contribution(would["levels"], would["max_size"], would["quantum"], would["kem"], would["priority"])
                )
            elif not instead:
                base, instead = over(own, rule), True
        size = 0 if by_envelope else mail.octets - mail.hidden
        levels, said = self._raised(base, raising, size, bounce=not mail.sender and not by_envelope)
        normal = mail.sender and "normal" in (base["priority"], *(each.priority for each in raising))
        said.priority = "normal" if normal else "low"
        return levels, said

    def _raised(
        self, base: dict[str, Any], raising: Sequence[Contribution], size: int, *, bounce: bool
    ) -> tuple[list[str], Contribution]:
        own: list[str] = base["levels"]
        lists = [(own, base["max_size"])]
        for each in raising:
            if each.levels:
                limits = dict(base["max_size"] if each.limits is None else each.limits)
                for level, limit in base["max_size"].items():
                    if level in own:
                        limits[level] = min(limit, limits.get(level, limit))
                lists.append((each.levels, limits))
        left = [[level for level in levels if size <= limits.get(level, size)] for levels, limits in lists]
        levels = strongest(left) if all(left) else []
        if bounce and size > MAX_BOUNCE:
            levels = [level for level in levels if level != "otp"]
        quantum = max([base["quantum"], *(each.quantum or "off" for each in raising)], key=QUANTA.index)
        kem = base["kem"].union(*(each.kem for each in raising))
        if kem > base["kem"] and "pqc" in levels:
            levels = [level for level in levels if STRENGTH[level] >= STRENGTH["pqc"]]
        return levels, Contribution(None, None, quantum, kem)

    def _fit(self, rule: Mapping[str, Any], mail: GateMail, *, by_envelope: bool) -> int:
        """How far a rule fits, its time aside."""
        fits = [self._people(name, rule[name], mail, by_envelope=by_envelope) for name in PEOPLE if name in rule]
        if not conditions(rule) <= set(PEOPLE):
            fits.append(SURELY if not by_envelope and self._message(rule, mail) else NOT)
        return min(fits, default=SURELY)

    def _people(self, name: str, patterns: Any, mail: GateMail, *, by_envelope: bool) -> int:
        who = name.removeprefix("not_")
        if by_envelope and who in ("author", "login"):
            return NOT
        each = [self._one(who, person, patterns) for person in self._persons(who, mail)]
        return max(SURELY - fit if name.startswith("not_") else fit for fit in each)

    def _persons(self, who: str, mail: GateMail) -> list[str | None]:
        """Whom a condition is about; None for one in doubt."""
        if who == "author":
            return list(mail.authors) if mail.authors else [None]
        if who == "login":
            return [None if mail.login is None else mail.login or "<>"]
        return [mail.recipient if who == "recipient" else mail.sender or "<>"]

    def _one(self, who: str, person: str | None, patterns: Any) -> int:
        globs = [glob(each) for text in listed(patterns) for each in self._expanded(text)]
        if who == "login":
            if person is None:
                return MAYBE
            return SURELY if any(each.fullmatch(person.lower()) for each in globs) else NOT
        if person is not None and who == "sender":
            person = person.removesuffix(".")
        if person is None or (person != "<>" and doubtful(person)):
            return MAYBE
        if self._fits(globs, person):
            return SURELY
        others = list(stands_for(person)) if who == "sender" else []
        may = any(other is None or doubtful(other) or self._fits(globs, other) for other in others)
        return MAYBE if may else NOT

    def _fits(self, globs: Iterable[re.Pattern[str]], person: str) -> bool:
        if person == "<>":
            return any(each.fullmatch(person) for each in globs)
        local, domain = split(person)
        texts = (f"{local}@{domain}", f"{self._untagged(local)}@{domain}")
        return any(each.fullmatch(text) for each in globs for text in texts)

    def _expanded(self, text: str) -> list[str]:
        return self.groups.get(text[6:], []) if text.startswith("group:") else [text]

    def _message(self, rule: Mapping[str, Any], mail: GateMail) -> bool:
        if "larger_than" in rule and not mail.octets > size_of(rule["larger_than"]):
            return False
        if "smaller_than" in rule and not mail.octets < size_of(rule["smaller_than"]):
            return False
        if "subject_tag" in rule and not any(
            compared(tag) in compared(mail.subject) for tag in listed(rule["subject_tag"])
        ):
            return False
        if "header" in rule and not any(has_field(mail, text) for text in listed(rule["header"])):
            return False
        if "attachment_type" in rule or "attachment_name" in rule:
            parts = mail.attachments or (("", "text/plain"),)  # the text of a message counts as one
            return any(fits_part(rule, name, kind) for name, kind in parts)
        return True

    # --- what must arrive -------------------------------------------------------------------------------------------

    def demands(self, address: str, day: date) -> list[tuple[frozenset[str], str, str | None]]:
        """What mail from somebody must arrive with: words, what happens else, and by which peer."""
        local, domain = split(address)
        found: list[tuple[frozenset[str], str, str | None]] = []
        first: Mapping[str, Any] | None = None
        for name, _ in self._covering(local, domain, day):
            file = self.files[name]
            if first is not None and ("/" in name or name == "default.toml"):
                continue
            first = file if first is None else first
            asked = listed(file.get("require", []))
            if "none" in asked:
                break
            if asked:
                peer = first.get("peer") or self.site.owners.get(domain)
                found.append((frozenset(asked), file.get("unprotected", "refuse"), peer))
        return found


PEOPLE = ("sender", "not_sender", "author", "not_author", "login", "not_login", "recipient", "not_recipient")
MESSAGE = ("subject_tag", "header", "larger_than", "smaller_than", "attachment_type", "attachment_name")


def conditions(rule: Mapping[str, Any]) -> set[str]:
    """The names of the conditions that a rule has."""
    return {name for name in (*PEOPLE, *MESSAGE) if name in rule}


def over(settings: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others put over them."""
    base = {"quantum": "preferred", "kem": frozenset({"ml-kem-1024"}), "max_size": {}, "priority": "normal"}
    base |= dict(settings)
    if "levels" in said:
        base["levels"] = named(said["levels"])
    if "max_size" in said:
        base["max_size"] = sizes(said["max_size"])
    if "kem" in said:
        base["kem"] = frozenset(listed(said["kem"]))
    for name in ("quantum", "priority"):
        if name in said:
            base[name] = said[name]
    return base


def raises(rule: Mapping[str, Any]) -> Contribution:
    """What a rule that raises says."""
    levels = named(rule["levels"]) if "levels" in rule else None
    limits = sizes(rule["max_size"]) if "max_size" in rule else None
    kem = frozenset(listed(rule.get("kem", [])))
    return Contribution(levels, limits, rule.get("quantum"), kem, rule.get("priority"))


def in_time(table: Mapping[str, Any], day: date) -> bool:
    """Whether a file or rule counts on a day."""
    return bool(table.get("since", date.min) <= day <= table.get("until", date.max))


def strongest(lists: Sequence[Sequence[str]]) -> list[str]:
    """The first that is never weaker than any of them, or what comes of all."""
    for each in lists:
        if all(never_weaker(tuple(each), tuple(other)) for other in lists):
            return list(each)
    least = max(min(STRENGTH[level] for level in each) for each in lists)
    every = {level for each in lists for level in each if STRENGTH[level] >= least}
    return sorted(every, key=lambda level: -STRENGTH[level])


@cache
def never_weaker(levels: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether the first list leads to nothing weaker than the second one, whatever is available."""
    for number in range(16):
        had = {level for place, level in enumerate(LEVELS) if number >> place & 1} | {"plaintext"}
        mine = [STRENGTH[level] for level in levels if level in had]
        theirs = [STRENGTH[level] for level in other if level in had]
        if mine and mine[0] < (theirs[0] if theirs else min(STRENGTH[level] for level in other)):
            return False
    return True


def weaker(new: GateOutcome, old: GateOutcome) -> str:
    """What is weaker, or ""."""
    if not new.levels:
        return ""
    if not old.levels:
        return "let go"
    if not never_weaker(new.levels, old.levels):
        return "levels"
    clear = ("plaintext",)
    if new.levels != clear and old.levels != clear and new.peer != old.peer:
        return "peer"
    signed = all({"pqc", "rsa"} & set(each.levels) for each in (new, old))
    if signed and QUANTA.index(new.quantum) < QUANTA.index(old.quantum):
        return "quantum"
    if "pqc" in new.levels and "pqc" in old.levels and not old.kem <= new.kem:
        return "kem"
    rest = tuple(level for level in new.levels if level != "pqc")
    if rest and "pqc" in old.levels and not new.kem <= old.kem and not never_weaker(rest, old.levels):
        return "a further KEM that may be unavailable"
    if (new.priority, old.priority) == ("low", "normal") and new.levels != clear:
        keyed = set(old.levels) & {"otp", "aes"} or (old.quantum != "off" and set(old.levels) & {"pqc", "rsa"})
        layer = new.quantum == "preferred" and set(new.levels) & {"pqc", "rsa"}
        if keyed and (len(new.levels) > 1 or layer):
            return "priority"
    return ""


def asks_less(new: GatePolicies, old: GatePolicies, address: str, day: date) -> bool:
    """Whether something that arrives from somebody is treated less severely."""
    found = [each.demands(address, day) for each in (new, old)]
    peers = {peer for each in found for _, _, peer in each if peer} | {"somebody else"}
    for layers in ARRIVING:
        for peer in peers if layers else {""}:
            done = [
                max((SEVERITY[what] for words, what, by in each if _missed(words, by, layers, peer)), default=0)
                for each in found
            ]
            if done[0] < done[1]:
                return True
    return False


def _missed(words: Iterable[str], by: str | None, layers: str, peer: str) -> bool:
    return by is None or by != peer or not all(MET_BY[word] & set(layers.split("+")) for word in words)


def tests_weaker(new: GatePolicies, old: GatePolicies, today: date) -> bool:
    """Whether a test that still counts is gone, or expects less."""
    return any(
        test.get("until", today) >= today and not any(_as_much(test, other) for other in new.tests)
        for test in old.tests
    )


def _as_much(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    told = ("expect", "peer", "file", "quantum", "otherwise", "priority", "until")
    if {name: value for name, value in old.items() if name not in told} != {
        name: value for name, value in new.items() if name not in told
    }:
        return False
    if new.get("until", date.max) < old.get("until", date.max):
        return False
    was, now = (
        each["expect"] if each["expect"] in ("held", "refused") else listed(each["expect"]) for each in (old, new)
    )
    if isinstance(now, str):
        return True
    if isinstance(was, str) or not never_weaker(tuple(now), tuple(was)):
        return False
    if "peer" in old and new.get("peer") != old["peer"]:
        return False
    if "quantum" in old and ("quantum" not in new or QUANTA.index(new["quantum"]) < QUANTA.index(old["quantum"])):
        return False
    return all(name in new for name in ("file", "otherwise", "priority") if name in old)


# --- texts ----------------------------------------------------------------------------------------------------------


def split(address: str) -> tuple[str, str]:
    """Local part and domain, as they are compared."""
    local, _, domain = address.rpartition("@")
    if len(local) > 1 and local[0] == local[-1] == '"':
        local = local[1:-1]
    return local.lower(), domain.lower()


def routed(local: str) -> bool:
    """Whether a local part may be a route."""
    return bool(set(local) & set("%!@"))


def doubtful(address: str) -> bool:
    """Whether an address is in doubt, as far as the mails of these tests go."""
    local, domain = split(address)
    return not local or routed(local) or domain.startswith("[") or not all(domain.split(".")) or "\u200b" in address


def stands_for(address: str) -> Iterator[str | None]:
    """Whom an SRS or BATV address stands for, form within form; None for somebody in doubt."""
    for _ in range(5):
        local, domain = split(address)
        if not re.match(r"srs[01][=+-]|prvs=", local):
            return
        again = re.fullmatch(r"srs1[=+-][^=]+=[^=]+=([=+-].*)", local)
        if again:
            local = "srs0" + again[1]
        if found := re.fullmatch(r"srs0[=+-][^=]+=[^=]+=([^=]+)=(.+)", local):
            address = f"{found[2]}@{found[1].removesuffix('.')}"
        elif not again and (found := re.fullmatch(r"prvs=[a-z0-9]+=(.+)", local)):
            address = f"{found[1]}@{domain}"
        else:
            yield None
            return
        yield address
    yield None


def fits_part(rule: Mapping[str, Any], name: str, kind: str) -> bool:
    """Whether one part has the type and the name that a rule asks for; "" is no name."""
    types, names = listed(rule.get("attachment_type", [])), listed(rule.get("attachment_name", []))
    right_type = not types or any(glob(each).fullmatch(kind.lower()) for each in types)
    return right_type and (
        not names or (bool(name) and any(glob(compared(each)).fullmatch(compared(name)) for each in names))
    )


def has_field(mail: GateMail, text: str) -> bool:
    """Whether a header field is there, and its value fits."""
    name, colon, value = text.partition(":")
    for has, content in mail.fields:
        if has.lower() == name.strip().lower() and (not colon or glob(compared(value)).fullmatch(compared(content))):
            return True
    return False


@cache
def glob(text: str) -> re.Pattern[str]:
    """A pattern, in lower case."""
    return re.compile(".*".join(map(re.escape, text.lower().split("*"))), re.DOTALL)


def compared(text: str) -> str:
    """In lower case, with single blanks."""
    return " ".join(text.casefold().split())


def encoded(local: str) -> str:
    """As it stands in the name of a file."""
    plain = "abcdefghijklmnopqrstuvwxyz0123456789-_+."
    return "".join(char if char in plain else "".join(f"%{octet:02X}" for octet in char.encode()) for char in local)


def listed(value: Any) -> list[Any]:
    """One or several."""
    return list(value) if isinstance(value, list) else [value]


def named(levels: Sequence[Any]) -> list[str]:
    """Levels by their names."""
    return [NUMBERED.get(level, level) for level in levels]


def size_of(value: Any) -> int:
    """Octets."""
    if isinstance(value, int):
        return value
    number, unit = value.split()
    return int(number) * UNITS[unit]


def sizes(value: Any) -> dict[str, int]:
    """The limits by level; one size is for all."""
    if isinstance(value, dict):
        return {level: size_of(each) for level, each in value.items()}
    return dict.fromkeys(LEVELS, size_of(value))
