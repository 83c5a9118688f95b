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
from relay.levels import ONLY_PLAINTEXT, OTP, SIGNED, LevelName
from relay.policy.comparing.conditions import Conditions
from relay.policy.decide import Decision, PolicySet
from relay.policy.file import Policy, PolicyFile
from relay.policy.floors import Floor
from relay.policy.names import SUFFIX, FoldedAddress, may_be_route, printable
from relay.policy.patterns import Groups
from relay.policy.rules import When
from relay.policy.settings import REFUSE, SealingSettings, held_for, today
from relay.policy.strength import never_weaker

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
        owner = policies.owners.get(file.domain)
        peer = file.policy.peer or owner
        levels = _levels(file, peer, can, policies.version)
        rules = _hidden_rules(file, policies.groups)
        for location, what in (*_of_file(file, peer, owner), *rules, *_kems_not_here(file), *levels):
            yield _doubt(policies.directory, file, location, what)
    yield from floors_in_vain(policies)
    if not can.asks_login:
        yield from _logins_unknown(policies)
    yield from endings(policies)


def floors_in_vain(policies: PolicySet) -> Iterator[Doubt]:
    """Floors whose recipients are at our own domains, and which leave these alone."""
    for placed in policies.floors:
        recipients = placed.when.people.get("recipient")
        if recipients is None or cast("Floor", placed.when).inside:
            continue
        if set(recipients.domains(policies.groups)) <= policies.site.domains:
            what = "its recipients are at our own domains, and a floor leaves mail inside alone; say inside = true"
            yield Doubt(placed.source, placed.line, 1, what)


def _logins_unknown(policies: PolicySet) -> Iterator[Doubt]:
    """Rules that name users, at a site whose clients do not log in here."""
    remedy = "it counts as anybody's, so that the rule is for all mail; take mail by milter or submission"
    what = f"mail comes in from a mail server, which does not say who has logged in: {remedy}"
    for placed in policies.floors:
        if _names_users(placed.when):
            yield Doubt(placed.source, placed.line, 1, what)
    for _, file in sorted(policies.files.items()):
        for number, rule in enumerate(file.policy.when):
            if _names_users(rule):
                yield _doubt(policies.directory, file, ("when", number), what)


def _names_users(rule: When) -> bool:
    return any(patterns.users for patterns in rule.people.values())


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


def peers_held(policies: PolicySet) -> Iterator[Doubt]:
    """Finds peers' domains whose mail is held: no file covers them, or one that says plaintext for everybody."""
    for domain, peer in sorted(policies.owners.items()):
        file, own = policies.covering(domain), policies.directory / (domain + SUFFIX)
        if file is None and not any(each.domain == domain for each in policies.files.values()):
            what = f"not there, and no other file covers {domain}: mail to peer {peer!r} is held; create it"
            yield Doubt(str(own), 1, 1, what)
        if file is None or file.domain == domain:
            continue
        if file.policy.levels == ONLY_PLAINTEXT:
            what = f"this is not for {domain}, which belongs to peer {peer!r}, and mail to it is held; create {own}"
            yield _doubt(policies.directory, file, ("levels",), what)


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
    levels = settings.levels
    if levels is None or levels == ONLY_PLAINTEXT:
        return
    why = {peer: {level: obstacle(peer, level) for level in levels} for peer in peers}
    able = [peer for peer in peers if not all(why[peer][level] for level in levels)]
    refuses = REFUSE in (settings.otherwise, policy.otherwise)
    for peer in peers:
        if peer not in able and not (refuses and peer in only_send):
            causes = "; ".join(f"{level}: {why[peer][level]}" for level in levels)
            what = f"no level that stands here can be had for peer {peer!r}, so this mail is held or refused"
            yield "levels", f"{what}: {causes}"
    for level in levels:
        if able and all(why[peer][level] for peer in able):
            what = f"{level} cannot be had for peer {', '.join(able)}, and is always passed over"
            yield "levels", f"{what}; leave it out, or fix the cause: {why[able[0]][level]}"


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
    for name in file.policy.kem[1:]:
        if cause := liboqs.unavailable(name):
            yield ("kem",), cause


def _settings(file: PolicyFile) -> Iterator[tuple[toml.Location, SealingSettings]]:
    """The file's own settings and those of its rules, each with its location."""
    yield (), file.policy
    for number, rule in enumerate(file.policy.when):
        yield ("when", number), rule


def _of_file(file: PolicyFile, peer: str | None, owner: str | None) -> Iterator[tuple[toml.Location, str]]:
    policy = file.policy
    if policy.levels == ONLY_PLAINTEXT:
        if not (policy.reason or policy.until):
            remedy = "list a level to have it sealed, or say `until` when or for what `reason`"
            yield ("levels",), f"PLAINTEXT: this mail leaves in clear; {remedy}"
        if policy.max_size:
            yield ("max_size",), "nothing is sealed here, so that a size decides nothing; leave it out"
    elif policy.peer is not None and owner not in (None, policy.peer):
        yield ("peer",), f"{file.domain} is a domain of peer {owner!r}, who could not open this mail"
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
    """A rule in comparable form, and its line."""

    when: When
    line: int
    conditions: Conditions


def _hidden_rules(file: PolicyFile, groups: Groups) -> Iterator[tuple[toml.Location, str]]:
    """Rules that raise nothing that another rule does not raise as well."""
    pairs = zip(file.policy.when, file.rule_lines, strict=True)
    rules = [_Rule(when, line, Conditions.of(when, groups)) for when, line in pairs]
    for number, rule in enumerate(rules):
        for place, other in enumerate(rules):
            if place != number and _hides(other, rule) and not (place > number and _hides(rule, other)):
                what = f"changes nothing: rule {place + 1} (line {other.line}) raises as much wherever it applies"
                yield ("when", number), f"{what}; leave it out"
                break


def _hides(first: _Rule, second: _Rule) -> bool:
    """Whether the first of two rules applies wherever the second does, and raises as much."""
    one, other = first.when, second.when
    if one.since is not None or one.until is not None:
        return False
    as_much = (
        (other.levels is None or (one.levels is not None and never_weaker(one.levels, other.levels)))
        and (
            other.otherwise is None
            or (one.otherwise is not None and held_for(one.otherwise) <= held_for(other.otherwise))
        )
        and (other.priority is None or one.priority is not None)
    )
    return as_much and second.conditions.imply(first.conditions)


def _levels(file: PolicyFile, peer: str | None, can: Capabilities, version: str) -> Iterator[tuple[toml.Location, str]]:
    """Levels that are impossible here, and one-time pads longer than any KME can supply."""
    if peer is None:
        return
    for place, settings in _settings(file):
        if settings.levels is None:
            continue
        levels, own = settings.levels, file.own
        decision = Decision(
            "",
            "somebody",
            levels,
            peer,
            settings.otherwise or own.otherwise,
            file.source,
            own.line,
            version,
            kem=own.kem,
        )
        for level in levels:
            if obstacle := can.obstacle(decision, level, 0):
                yield (*place, "levels"), f"{obstacle}; until then {_then(decision)}"
        largest = min(dict(own.max_size).get(OTP.name, can.largest), can.largest)
        most = can.pads.get(peer)
        if OTP.name in levels and most is not None and largest > most:
            setting = "max_size" if own.max_size and not place else "levels"
            what = f"otp: the pad for {largest} bytes is longer than all that the KMEs for peer {peer!r} can ever hold"
            yield (*place, setting), f"{what} ({most} bytes); set max_size = {{ otp = {max(1, most - most // 8)} }}"


def _then(decision: Decision) -> str:
    if len(decision.levels) > 1:
        return "it is passed over"
    return "this mail is refused" if decision.otherwise == REFUSE else "this mail is held"


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
