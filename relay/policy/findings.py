"""Doubts about valid policy files: rules that never apply, unavailable levels, mail in clear, end dates.
Each doubt names file, line and column, and how to fix it; none of them stops the relay.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast
from urllib.parse import unquote

from relay.errors import ConfigError
from relay.files import toml
from relay.identity import liboqs
from relay.levels import ON_TOP, ONLY_PLAINTEXT, OTP, SIGNED, LevelName
from relay.policy.conditions import NOT, ON_PEOPLE
from relay.policy.decide import Decision, PolicySet
from relay.policy.file import Policy, PolicyFile
from relay.policy.floors import Floor
from relay.policy.names import SUFFIX, FoldedAddress, may_be_route, printable
from relay.policy.patterns import Glob, Groups
from relay.policy.raising import Raising, raised
from relay.policy.rules import When
from relay.policy.settings import Chosen, SealingSettings, today
from relay.policy.strength import strongest

ENDS_SOON_DAYS = 14
"""Days before the end of a file or rule from which it is reported."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """One doubtful place; line and column begin at 1, and are 1 if unknown."""

    source: str
    line: int
    column: int
    what: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}: {printable(self.what)}"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The capabilities of this relay and its peers.

    `obstacle` says why a level cannot be done for a message of a size in bytes, or "". `pads` has for each peer the
    maximum number of bytes of key that its KMEs can hold (missing: unknown). `largest` is the largest message that the
    relay takes, in bytes. `asks_login` says whether each listener for outgoing mail learns the login.
    """

    obstacle: Callable[[Decision, LevelName, int], str]
    pads: Mapping[str, int]
    largest: int
    asks_login: bool = True


def doubtful(policies: PolicySet, can: Capabilities) -> Iterator[Doubt]:
    """Peers whose mail is held, then every doubt about every file, in the order of their names."""
    yield from peers_held(policies)
    for _, file in sorted(policies.files.items()):
        peer = file.policy.peer or policies.owners.get(file.domain)
        levels = _levels(file, peer, can, policies.version)
        rules = _hidden_rules(file, policies.groups)
        for location, what in (*_of_file(file, peer), *rules, *_kems_not_here(file), *levels):
            yield _doubt(policies.directory, file, location, what)
    yield from _floors_not_here(policies)
    yield from floors_in_vain(policies)
    if not can.asks_login:
        yield from _logins_unknown(policies)
    yield from endings(policies)


def floors_in_vain(policies: PolicySet) -> Iterator[Doubt]:
    """Floors that nothing can fulfil: for recipients without a peer, for mail larger than max_size, for mail inside.

    A floor that sets `impossible` is intended.
    """
    unsealed = [file for _, file in sorted(policies.files.items()) if _seals_for_nobody(policies, file)]
    for placed in policies.floors:
        floor = placed.when
        asks = (floor.levels is not None or floor.quantum == "required") and floor.impossible is None
        covered = [
            file for file in unsealed if asks and isinstance(floor, Floor) and _may_be_for(policies, floor, file)
        ]
        if covered:
            more = f" and {len(covered) - 1} more files" if len(covered) > 1 else ""
            remedy = 'say impossible = "refuse" (or "hold") if that is meant, or leave them out with not_recipient'
            what = (
                f"nothing can fulfil this floor for recipients of {covered[0].name}{more}, who have no peer; {remedy}"
            )
            yield Doubt(placed.source, placed.line, 1, what)
    yield from _floors_too_small(policies)
    yield from _floors_for_nobody(policies)


def _floors_too_small(policies: PolicySet) -> Iterator[Doubt]:
    """Floors for mail that is larger than their levels allow, by their own limits or a file's."""
    large = [placed for placed in policies.floors if placed.when.larger_than and placed.when.levels]
    kinds: dict[tuple[object, ...], list[PolicyFile]] = {}
    for _, file in sorted(policies.files.items()) if large else ():
        kinds.setdefault((file.own.levels, file.own.max_size, _seals_for_nobody(policies, file)), []).append(file)
    for placed in large:
        size = (placed.when.larger_than or 0) + 1
        for files in kinds.values():
            own = files[0].own
            held = _without_level(raised(own, [Raising.of(placed)], size), size) and not _without_level(own, size)
            covered = [file for file in files if held and _may_be_for(policies, cast("Floor", placed.when), file)]
            if covered and placed.when.impossible is None and not _seals_for_nobody(policies, covered[0]):
                more = f" and {len(covered) - 1} more files" if len(covered) > 1 else ""
                what = (
                    f"for recipients of {covered[0].name}{more} no level is for mail of {size} bytes (max_size, here "
                    'or there); say impossible = "refuse" (or "hold") if that is meant'
                )
                yield Doubt(placed.source, placed.line, 1, what)


def _without_level(chosen: Chosen, size: int) -> bool:
    limits = dict(chosen.max_size)
    return all(size > limits.get(level, size) for level in chosen.levels)


def _floors_for_nobody(policies: PolicySet) -> Iterator[Doubt]:
    """Floors whose recipients are at our own domains, and which leave these alone."""
    for placed in policies.floors:
        recipients = placed.when.people.get("recipient")
        if recipients is None or not isinstance(placed.when, Floor) or placed.when.inside:
            continue
        if set(recipients.domains(policies.groups)) <= policies.site.domains:
            what = "its recipients are at our own domains, and a floor leaves mail inside alone; say inside = true"
            yield Doubt(placed.source, placed.line, 1, what)


def _seals_for_nobody(policies: PolicySet, file: PolicyFile) -> bool:
    return file.policy.peer is None and file.domain not in policies.owners and not file.policy.not_now


def _may_be_for(policies: PolicySet, floor: Floor, file: PolicyFile) -> bool:
    """Whether, by its patterns, the floor may apply to somebody whom the file covers."""
    if file.domain in policies.site.domains and not floor.inside and not file.policy.subdomains:
        return False
    recipients = floor.people.get("recipient")
    if recipients is None:
        return True
    if file.scope == "default":
        domains = recipients.domains(policies.groups)
        return any("*" in domain or policies.covering(domain) is file for domain in domains)
    return recipients.reach(policies.groups, file.domain, below=file.policy.subdomains)


def _logins_unknown(policies: PolicySet) -> Iterator[Doubt]:
    """Rules with conditions on the login, at a site whose clients do not log in here."""
    remedy = "it counts as anybody's, so that the rule is for all mail; take mail by milter or submission"
    what = f"mail comes in from a mail server, which does not say who has logged in: {remedy}"
    for placed in policies.floors:
        if {"login", "not_login"} & set(placed.when.conditions):
            yield Doubt(placed.source, placed.line, 1, what)
    for _, file in sorted(policies.files.items()):
        for number, rule in enumerate(file.policy.when):
            if {"login", "not_login"} & set(rule.conditions):
                yield _doubt(policies.directory, file, ("when", number), what)


def endings(policies: PolicySet) -> Iterator[Doubt]:
    """Files and rules that end within two weeks, or have ended, and should be fixed or deleted."""
    # A relay checks every day: sorting 100,000 files would block all of its threads.
    ending = (each for each in policies.files.items() if any(one.until is not None for _, one in _settings(each[1])))
    for _, file in sorted(ending):
        for place, settings in _settings(file):
            if settings.until is not None and (days := (settings.until - today()).days) <= ENDS_SOON_DAYS:
                what = "rule" if place else "file"
                when = f"ends in {days} days, after {settings.until}" if days >= 0 else f"ended on {settings.until}"
                remedy = "the rest counts then" if days >= 0 else "delete it"
                yield _doubt(policies.directory, file, (*place, "until"), f"this {what} {when}; {remedy}")


def in_vain(policies: PolicySet, *, sends: bool) -> Iterator[Doubt]:
    """Finds policies that cannot be fulfilled here: their mail is held, or weaker than they say.

    `sends` False: no mail leaves by this relay.
    """
    if sends:
        yield from peers_held(policies)
    yield from kems_not_here(policies)
    yield from floors_in_vain(policies)


def kems_not_here(policies: PolicySet) -> Iterator[Doubt]:
    """Finds policies that name a further KEM unavailable on this machine, with instructions to install it."""
    for _, file in sorted(policies.files.items()):
        for location, what in _kems_not_here(file):
            yield _doubt(policies.directory, file, location, what)
    yield from _floors_not_here(policies)


def _floors_not_here(policies: PolicySet) -> Iterator[Doubt]:
    for floor in policies.floors:
        for name in (floor.when.kem or ())[1:]:
            if cause := liboqs.unavailable(name):
                yield Doubt(floor.source, floor.line, 1, cause)


def peers_held(policies: PolicySet) -> Iterator[Doubt]:
    """Finds peers' domains whose mail is held: no file covers them, or one that says plaintext for everybody."""
    for domain, peer in sorted(policies.owners.items()):
        file, own = policies.covering(domain), policies.directory / (domain + SUFFIX)
        if file is None and not any(each.domain == domain for each in policies.files.values()):
            what = f"not there, and no other file covers {domain}: mail to peer {peer!r} is held; create it"
            yield Doubt(str(own), 1, 1, what)
        if file is None or file.domain == domain:
            continue
        create = f"create {own}"
        what = f"this is not for {domain}, which belongs to peer {peer!r}, and mail to it is held; {create}"
        for place, settings in _settings(file):
            if settings.levels == ONLY_PLAINTEXT:
                yield _doubt(policies.directory, file, (*place, "levels"), what)


Obstacle = Callable[[str, LevelName], str]
"""Why a level is not possible for a peer, "" if it is."""


def levels_in_vain(policies: PolicySet, obstacle: Obstacle, only_send: Collection[str] = ()) -> Iterator[Doubt]:
    """Finds levels, and layers on top, that no peer of their file can have, whatever keys and mail there are.

    Where a peer can have none of a list, its mail is never sealed. Else each mail for which such a level is passed over
    counts as a downgrade. Peers that `only_send` can have nothing; files that refuse their mail are meant so.
    """
    covering = ((policies.covering(domain), peer) for domain, peer in policies.owners.items())
    named = ((file, file.policy.peer) for file in policies.files.values())
    peers: dict[str, set[str]] = {}
    for file, peer in (*covering, *named):
        if file is not None and peer is not None and not file.policy.not_now:
            peers.setdefault(file.name, set()).add(peer)
    for name, of in sorted(peers.items()):
        file = policies.files[name]
        for place, settings in _settings(file):
            if not settings.not_now:
                for setting, what in _in_vain(file.policy, settings, sorted(of), obstacle, only_send):
                    yield _doubt(policies.directory, file, (*place, setting), what)


def _in_vain(
    policy: Policy, settings: SealingSettings, peers: list[str], obstacle: Obstacle, only_send: Collection[str]
) -> Iterator[tuple[str, str]]:
    """The setting that asks for what peers cannot have, and what is wrong, for a file's settings or a rule's."""
    levels, quantum = settings.levels or policy.levels, settings.quantum or policy.quantum
    if levels == ONLY_PLAINTEXT:
        return
    why = {peer: {level: obstacle(peer, level) for level in (*levels, ON_TOP)} for peer in peers}
    able = [peer for peer in peers if not all(why[peer][level] for level in levels)]
    refuses = (settings.otherwise or policy.otherwise) == "refuse"
    for peer in peers if settings.levels else ():
        if peer not in able and not (refuses and peer in only_send):
            causes = "; ".join(f"{level}: {why[peer][level]}" for level in levels)
            what = f"no level that stands here can be had for peer {peer!r}, so this mail is held or refused"
            yield "levels", f"{what}: {causes}"
    for level in levels if settings.levels else ():
        if able and all(why[peer][level] for peer in able):
            what = f"{level} cannot be had for peer {', '.join(able)}, and is always passed over"
            yield "levels", f"{what}; leave it out, or fix the cause: {why[able[0]][level]}"
    on_top = able and quantum != "off" and not SIGNED.isdisjoint(levels) and all(why[peer][ON_TOP] for peer in able)
    if on_top and (settings.levels or settings.quantum):
        what = f'quantum = "{quantum}" asks for a layer that cannot be had for peer {", ".join(able)}'
        effect = "this mail is held or refused" if quantum == "required" else "each mail counts as a downgrade"
        cause = why[able[0]][ON_TOP]
        yield "quantum" if settings.quantum else "levels", f'{what}, so {effect}; write quantum = "off": {cause}'


def peers_unmarked(policies: PolicySet) -> Iterator[Doubt]:
    """Finds peers' domains of whose mail nothing is required, and no file says that this is meant."""
    for domain in sorted(policies.owners):
        file = policies.covering(domain)
        if file is None or file.policy.drops_require or any(policies.required_from(FoldedAddress("", domain))):
            continue
        where = "here" if file.domain == domain else f"into {policies.directory / (domain + SUFFIX)}"
        what = f"forged mail in the name of {domain} arrives without a mark: what it must arrive with is not said"
        remedy = f'write require = ["sealed"] and unprotected = "mark" {where} (require = "none" if that is meant)'
        yield _doubt(policies.directory, file, ("levels",), f"{what}; {remedy}")


def _kems_not_here(file: PolicyFile) -> Iterator[tuple[toml.Location, str]]:
    for place, settings in _settings(file):
        for name in (settings.kem or ())[1:]:
            if cause := liboqs.unavailable(name):
                yield (*place, "kem"), cause


def _settings(file: PolicyFile) -> Iterator[tuple[toml.Location, SealingSettings]]:
    """The file's own settings and those of its rules, each with its location."""
    yield (), file.policy
    for number, rule in enumerate(file.policy.when):
        yield ("when", number), rule


def _of_file(file: PolicyFile, peer: str | None) -> Iterator[tuple[toml.Location, str]]:
    policy = file.policy
    for place, settings in _settings(file):
        if settings.levels == ONLY_PLAINTEXT and not (settings.reason or settings.until or policy.until):
            remedy = "list a level to have it sealed, or say `until` when or for what `reason`"
            yield (*place, "levels"), f"PLAINTEXT: this mail leaves in clear; {remedy}"
        if settings.hold_for is not None and (settings.otherwise or policy.otherwise) == "refuse":
            yield (*place, "hold_for"), 'nothing is held where otherwise = "refuse"; leave one of them out'
    if file.scope == "person" and may_be_route(FoldedAddress(unquote(file.name.rpartition("/")[2]), file.domain)):
        yield ("levels",), "a mail server may read this address as a route, and send its mail on to another domain"
    by_domain = file.scope == "default" or policy.subdomains
    if peer is None and not by_domain and policy.levels != ONLY_PLAINTEXT:
        yield ("levels",), f"{file.domain} is no peer's domain, so nothing can be sealed; set peer"
    if policy.require and peer is None and not by_domain:
        yield ("require",), f"{file.domain} is no peer's domain, so none may seal for it, and all is missed; set peer"
    if policy.drops_require:
        yield ("require",), "what the files of the domains above it require does not count for this mail"
    if OTP.name in policy.require and SIGNED & set(policy.require):
        yield ("require",), "no relay signs beneath a one-time pad, so this is never met; leave one of them out"


class _Rule(NamedTuple):
    """A rule in comparable form: its levels and patterns."""

    when: When
    conditions: tuple[str, ...]
    only_raises: bool
    line: int
    levels: tuple[str, ...]
    globs: Mapping[str, tuple[Glob, ...]]
    texts: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, file: PolicyFile, when: When, line: int, groups: Groups) -> _Rule:
        """Rule of this file."""
        globs, texts = {}, {}
        for name in when.conditions:
            if name in ON_PEOPLE:
                globs[name] = tuple(when.people[name].all(groups))
                texts[name] = tuple(map(str, globs[name]))
            elif isinstance(value := getattr(when, name), tuple | list):
                texts[name] = tuple(map(str.casefold, value))
                globs[name] = tuple(map(Glob.of, texts[name]))
        return cls(when, when.conditions, when.only_raises, line, file.own.instead(when, line).levels, globs, texts)


def _hidden_rules(file: PolicyFile, groups: Groups) -> Iterator[tuple[toml.Location, str]]:
    """Rules that change nothing for any mail, or rules by sender that follow weaker ones."""
    pairs = zip(file.policy.when, file.rule_lines, strict=True)
    rules = [_Rule.of(file, when, line, groups) for when, line in pairs]
    for number, rule in enumerate(rules):
        for earlier, other in enumerate(rules[:number]):
            if hidden := _hides(other, rule):
                yield ("when", number), hidden.format(f"rule {earlier + 1} (line {other.line})")
                break


def _hides(first: _Rule, second: _Rule) -> str:
    """The doubt about the second of two rules because of the first, with {} for that one; or ""."""
    rule, other = second.when, first.when
    if second.only_raises != first.only_raises or other.since is not None or other.until is not None:
        return ""
    covers = all(_condition_covers(name, first, second) for name in first.conditions)
    if second.only_raises:
        only_levels = rule.model_fields_set <= {*second.conditions, "levels"}
        same = rule.levels and other.levels and strongest((other.levels, rule.levels)) == other.levels
        idle = covers and only_levels and same
        return "changes nothing: {} raises as much wherever it applies; leave it out" if idle else ""
    if covers:
        return "never applies: {} applies first; move it up"
    mine, others = second.levels, first.levels
    stronger = mine != others and strongest((others, mine)) != others and _meet(first, second)
    return "stronger than {}, which applies first where both would; move it up" if stronger else ""


def _condition_covers(name: str, first: _Rule, second: _Rule) -> bool:
    """Whether this condition of the first rule holds wherever that of the second does."""
    mine, other = getattr(first.when, name), getattr(second.when, name)
    if other is None:
        return False
    if name == "larger_than":
        return bool(mine <= other)
    if name == "smaller_than":
        return bool(mine >= other)
    wide, texts = first.globs[name], second.texts[name]
    # A pattern covers another one if it matches its text, stars included.
    if name.startswith(NOT):  # the second has to exclude all that the first excludes
        return all(any(glob.matches(text) for glob in second.globs[name]) for text in first.texts[name])
    if name == "subject_tag":
        return all(any(tag in text for tag in first.texts[name]) for text in texts)
    return all(any(glob.matches(text) for glob in wide) for text in texts)


def _meet(first: _Rule, second: _Rule) -> bool:
    """Whether, by their patterns, both rules may apply to one sender."""
    if "sender" not in first.globs or "sender" not in second.globs:
        return True
    return any(glob.meets(other) for glob in first.globs["sender"] for other in second.globs["sender"])


def _levels(file: PolicyFile, peer: str | None, can: Capabilities, version: str) -> Iterator[tuple[toml.Location, str]]:
    """Levels that are impossible here, and one-time pads longer than any KME can supply."""
    if peer is None:
        return
    own: tuple[toml.Location, SealingSettings, Chosen] = ((), file.policy, file.own)
    rules = [
        (("when", number), rule, file.own.instead(rule, file.rule_lines[number], number + 1))
        for number, rule in enumerate(file.policy.when)
    ]
    for place, settings, chosen in (own, *rules):
        if settings.levels is None:
            continue
        decision = Decision(
            "", "somebody", chosen.levels, peer, chosen.quantum, chosen.otherwise, file.source, chosen.line, version,
            kem=chosen.kem,
        )  # fmt: skip
        for level in chosen.levels:
            if obstacle := can.obstacle(decision, level, 0):
                yield (*place, "levels"), f"{obstacle}; until then {_then(chosen, level)}"
        largest = min(dict(chosen.max_size).get(OTP.name, can.largest), can.largest)
        most = can.pads.get(peer)
        if OTP.name in chosen.levels and most is not None and largest > most:
            setting = "max_size" if settings.max_size is not None else "levels"
            what = f"otp: the pad for {largest} bytes is longer than all that the KMEs for peer {peer!r} can ever hold"
            yield (*place, setting), f"{what} ({most} bytes); set max_size = {{ otp = {max(1, most - most // 8)} }}"


def _then(chosen: Chosen, level: LevelName) -> str:
    if len(chosen.levels) > 1:
        return "it is passed over"
    return "this mail is refused" if chosen.otherwise == "refuse" else "this mail is held"


def _doubt(directory: Path, file: PolicyFile, location: toml.Location, what: str) -> Doubt:
    try:
        text = toml.read(directory / file.name)
    except ConfigError:
        return Doubt(file.source, 1, 1, what)
    line = toml.line_of(text, location) or 1
    return Doubt(file.source, line, column_of(text, line, str(location[-1])), what)


def column_of(text: str, line: int, name: str) -> int:
    """Returns the column of `name`, or else of the first character on the line; 1 is the first."""
    lines = text.splitlines()
    here = lines[line - 1] if 0 < line <= len(lines) else ""
    found = here.find(name)
    return found + 1 if found >= 0 else len(here) - len(here.lstrip()) + 1
