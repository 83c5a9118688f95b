"""Doubts about valid policy files: rules that never apply, unavailable levels, mail in clear, end dates.
Each doubt names file and line, and how to fix it; none of them stops the relay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from relay.counting.amounts import many
from relay.errors import ConfigError
from relay.files import toml
from relay.levels import ON_TOP, ONLY_PLAINTEXT, PLAINTEXT, PQC, SMIME, LevelName
from relay.policy.decide import PolicySet
from relay.policy.file import PolicyFile
from relay.policy.names import FLOORS_FILE, SUFFIX, FoldedAddress, may_be_route, printable
from relay.policy.rules import When
from relay.policy.settings import REFUSE, Chosen, SealingSettings, today
from relay.policy.strength import guarantee

ENDS_SOON_DAYS = 14
"""Days before the end of a file or rule from which it is reported."""
MAX_NAMED = 5
"""Maximum number of files that are named because they are not read."""
_TOKEN = re.compile(r"[^\s()<>@,;:\\\"/\[\]?=]+")
"""A name as of header fields and parameters (RFC 2045, 5.1): a field of another name is in no mail."""


Obstacle = Callable[[str, LevelName], str]
"""Why mail to a peer cannot have a level, "" if it can."""


class Doubt(NamedTuple):
    """One doubtful place; lines begin at 1, which also stands for an unknown one."""

    source: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {printable(self.what)}"


def doubtful(policies: PolicySet, obstacle: Obstacle, only_send: Collection[str]) -> Iterator[Doubt]:
    """What cannot be fulfilled here, then every doubt about every file, in the order of their names.

    Peers that `only_send` can have nothing.
    """
    yield from in_vain(policies, sends=True)
    yield from levels_in_vain(policies, obstacle, only_send)
    raised = {level for floor in policies.floors for level in floor.when.levels or ()}
    for _, file in sorted(policies.files.items()):
        owner = policies.owners.get(file.domain)
        peer = file.policy.peer or owner
        for location, what in (*_of_file(file, peer, owner), *_of_no_effect(file, raised)):
            yield _doubt(policies.directory, file.name, location, what)
    for name, location, rule in _rules(policies):
        if not policies.site.logins_known and any(patterns.users for patterns in rule.people.values()):
            what = "mail comes in from a mail server, which does not say who has logged in"
            remedy = "it counts as anybody's, so that the rule is for all mail; take mail by milter or submission"
            yield _doubt(policies.directory, name, location, f"{what}: {remedy}")
        for what in _hardly_fitting(rule):
            yield _doubt(policies.directory, name, (*location, "attachment_name"), what)
    yield from endings(policies)


def files_not_read(directory: Path) -> str:
    """Which files below are no policies for their ending, for a person; "" if none. README files are meant so."""
    every = (*directory.glob("[!.]*"), *directory.glob("[!.]*/[!.]*"))
    others = (each for each in every if each.suffix != SUFFIX and not each.name.startswith("README") and each.is_file())
    names = sorted(str(each.relative_to(directory)) for each in others)
    if not names:
        return ""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    said = (
        f"{many(len(names), 'file')} {'is' if len(names) == 1 else 'are'} not read, since they do not end with {SUFFIX}"
    )
    return f"{said}: {', '.join(names[:MAX_NAMED])}{more}"


def floors_in_vain(policies: PolicySet) -> Iterator[Doubt]:
    """Floors whose recipients are at our own domains, and which leave these alone."""
    for placed in policies.floors:
        recipients = placed.when.people.get("recipient")
        if recipients is not None and set(recipients.domains(policies.groups)) <= policies.site.domains:
            what = "its recipients are at our own domains, which floors leave alone; write a rule into their file"
            yield Doubt(placed.source, placed.line, what)


def _rules(policies: PolicySet) -> Iterator[tuple[str, toml.Location, When]]:
    """All floors and rules, each with its file and its location there."""
    for number, placed in enumerate(policies.floors):
        yield FLOORS_FILE, ("floor", number), placed.when
    for name, file in sorted(each for each in policies.files.items() if each[1].policy.when):
        for number, rule in enumerate(file.policy.when):
            yield name, ("when", number), rule


def _fields_in_vain(policies: PolicySet) -> Iterator[Doubt]:
    """Rules that look for a header field of a name that no mail has."""
    for name, location, rule in _rules(policies):
        for text in rule.header or ():
            if not _TOKEN.fullmatch(text.partition(":")[0].strip()):
                what = f'no mail has a field that is called {text!r}; write "Name: value" for what a field says'
                yield _doubt(policies.directory, name, (*location, "header"), what)


def quantum_keys_cut(policies: PolicySet) -> Iterator[Doubt]:
    """Rules for aes, maybe meant for any quantum key, that cut a signed level under a quantum key."""
    everywhere = {level for file in policies.files.values() for level in file.policy.levels}
    for name, location, rule in _rules(policies):
        listed = policies.files[name].policy.levels if name in policies.files else everywhere
        if rule.levels and guarantee(rule.levels) == ON_TOP and (cut := f"{PQC.name}+{ON_TOP}") in listed:
            what = f'this cuts {cut}, which uses a quantum key too; if any such level will do, write ["{cut}"]'
            yield _doubt(policies.directory, name, (*location, "levels"), what)


def _hardly_fitting(rule: When) -> Iterator[str]:
    """Names that hardly any attachment has."""
    for text in rule.attachment_name or ():
        if "*" not in text and "." not in text[1:]:
            ending = text.removeprefix(".")
            yield f'{text!r} fits only a file that is called just so; write "*.{ending}" for all with this ending'


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
                yield _doubt(policies.directory, file.name, (*place, "until"), f"this {what} {when}; {remedy}")


def in_vain(policies: PolicySet, *, sends: bool, peers: Collection[str] | None = None) -> Iterator[Doubt]:
    """Finds policies that cannot be fulfilled here: their mail is held, or weaker than they say.

    `sends` False: no mail leaves by this relay. `peers` as in `peers_unknown`.
    """
    if sends:
        yield from peers_held(policies)
        yield from peers_unknown(policies, peers)
    yield from floors_in_vain(policies)
    yield from _fields_in_vain(policies)


def peers_held(policies: PolicySet) -> Iterator[Doubt]:
    """Finds peers' domains whose mail is held: no file covers them, or one that says plaintext for everybody."""
    for domain, peer in sorted(policies.owners.items()):
        file, own = policies.covering(domain), policies.directory / (domain + SUFFIX)
        if file is None and not any(each.domain == domain for each in policies.files.values()):
            what = f"not there, and no other file covers {domain}: mail to peer {peer!r} is held; create it"
            yield Doubt(str(own), 1, what)
        if file is None or file.domain == domain:
            continue
        if file.policy.levels == ONLY_PLAINTEXT:
            what = f"this is not for {domain}, which belongs to peer {peer!r}, and mail to it is held; create {own}"
            yield _doubt(policies.directory, file.name, ("levels",), what)


def peers_unknown(policies: PolicySet, peers: Collection[str] | None = None) -> Iterator[Doubt]:
    """Finds files that have mail to a domain sealed which is no peer's: its mail is held.

    A peer is unknown too once its document is gone: what this peer seals is put in quarantine then. A serving relay
    still knows the domains of such a peer, so it gives the names of its current `peers`; None: all that `policies` has.
    """
    for name, file in sorted(policies.files.items()):
        owner = file.policy.peer or policies.owners.get(file.domain)
        sealed = file.policy.levels != ONLY_PLAINTEXT and SMIME not in file.policy.levels
        unknown = owner is None or (peers is not None and owner not in peers)
        if file.domain and unknown and sealed and not file.policy.not_now:
            what = f"no peer has {file.domain}, and mail to it is held: accept the peer, or put its document back"
            yield _doubt(policies.directory, name, ("levels",), what)


def levels_in_vain(policies: PolicySet, obstacle: Obstacle, only_send: Collection[str] = ()) -> Iterator[Doubt]:
    """Finds levels, and layers on top, that no peer of their file can have, whatever keys and mail there are.

    Where a peer can have none of a list, its mail is never sealed. Else each mail for which such a level is passed over
    counts as a downgrade. Peers that `only_send` can have nothing; files that refuse their mail are meant so.
    """
    covering = ((policies.covering(domain), peer) for domain, peer in policies.owners.items())
    named = ((file, file.policy.peer or policies.owners.get(file.domain)) for file in policies.files.values())
    obstacle, peers = cache(obstacle), dict[str, set[str]]()
    for file, peer in (*covering, *named):
        if file is not None and peer is not None and not file.policy.not_now:
            peers.setdefault(file.name, set()).add(peer)
    without: list[tuple[str, toml.Location, SealingSettings]] = [
        (FLOORS_FILE, ("floor", number), each.when) for number, each in enumerate(policies.floors)
    ]
    files = ((name, file) for name, file in sorted(policies.files.items()) if name not in peers)
    without += [(name, *each) for name, file in files if not file.policy.not_now for each in _settings(file)]
    for name, location, each in without:
        if SMIME in (each.levels or ()) and not each.not_now and (cause := obstacle("", SMIME)):
            yield _doubt(policies.directory, name, (*location, "levels"), f"{SMIME} cannot be had: {cause}")
    for name, of in sorted(peers.items()):
        file = policies.files[name]
        for place, settings in _settings(file):
            if not settings.not_now:
                for what in _in_vain(file.own, settings, sorted(of), obstacle, only_send):
                    yield _doubt(policies.directory, name, (*place, "levels"), what)


def _in_vain(
    own: Chosen, settings: SealingSettings, peers: list[str], obstacle: Obstacle, only_send: Collection[str]
) -> Iterator[str]:
    """What is wrong with levels that peers cannot have, for a file's settings or a rule's."""
    levels = settings.levels
    if levels is None or levels == ONLY_PLAINTEXT:
        return
    why = {peer: {level: obstacle(peer, level) for level in levels} for peer in peers}
    able = [peer for peer in peers if not all(why[peer][level] for level in levels)]
    refuses = REFUSE in (settings.otherwise, own.otherwise)
    for peer in peers:
        if peer not in able and not (refuses and peer in only_send):
            causes = "; ".join(f"{level}: {why[peer][level]}" for level in levels)
            what = f"no level that stands here can be had for peer {peer!r}, so this mail is held or refused"
            yield f"{what}: {causes}"
    for level in levels:
        if able and all(why[peer][level] for peer in able):
            what = f"{level} cannot be had for peer {', '.join(able)}, and is always passed over"
            yield f"{what}; leave it out, or fix the cause: {why[able[0]][level]}"


def peers_unmarked(policies: PolicySet) -> Iterator[Doubt]:
    """Finds peers' domains of whose mail nothing is required, and no file says that this is meant."""
    for domain in sorted(policies.owners):
        file = policies.covering(domain)
        if file is None or file.policy.drops_require or any(policies.required_from(FoldedAddress("", domain))):
            continue
        where = "here" if file.domain == domain else f"into {policies.directory / (domain + SUFFIX)}"
        what = f"forged mail in the name of {domain} arrives without a mark: what it must arrive with is not said"
        remedy = f'write require = "sealed" and unprotected = "mark" {where} (require = "none" if that is meant)'
        yield _doubt(policies.directory, file.name, ("levels",), f"{what}; {remedy}")


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
    elif policy.peer is not None and owner not in (None, policy.peer):
        yield ("peer",), f"{file.domain} is a domain of peer {owner!r}, who could not open this mail"
    if file.scope == "person" and may_be_route(FoldedAddress(unquote(file.name.rpartition("/")[2]), file.domain)):
        yield ("levels",), "a mail server may read this address as a route, and send its mail on to another domain"
    by_domain = file.scope == "default" or policy.subdomains
    if owner and policy.subdomains and policy.peer is None and policy.levels != ONLY_PLAINTEXT:
        yield ("subdomains",), f"mail to domains below that no peer lists is refused; set peer = {owner!r}"
    if peer is None and not by_domain and policy.levels != ONLY_PLAINTEXT and SMIME not in policy.levels:
        yield ("levels",), f"{file.domain} is no peer's domain, so nothing can be sealed; set peer"
    if policy.require and peer is None and not by_domain:
        yield ("require",), f"{file.domain} is no peer's domain, so none may seal for it, and all is missed; set peer"
    if policy.drops_require:
        yield ("require",), "what the files of the domains above it require does not count for this mail"


def _of_no_effect(file: PolicyFile, raised: Collection[LevelName]) -> Iterator[tuple[toml.Location, str]]:
    """Settings for levels that neither the file nor a floor lists: `raised` has those of all floors."""
    policy = file.policy
    listed = {level for _, settings in _settings(file) for level in settings.levels or ()}.union(raised)
    for level, _ in policy.max_size:
        if level not in listed:
            what = (
                f"{level} is listed neither here nor in {FLOORS_FILE}, so that this size decides nothing; leave it out"
            )
            yield ("max_size",), what
    for setting in ("otherwise", "priority"):
        if setting in policy.model_fields_set and listed <= {PLAINTEXT}:
            yield (setting,), "it decides nothing beside plaintext that no rule or floor raises; leave it out"


def _doubt(directory: Path, name: str, location: toml.Location, what: str) -> Doubt:
    source = printable(f"{directory}/{name}")
    try:
        text = toml.read(directory / name)
    except ConfigError:
        return Doubt(source, 1, what)
    return Doubt(source, toml.line_of(text, location) or 1, what)
