"""Decides, from the loaded policy files, how one recipient's mail is sealed, and explains the decision.
Standard: the most specific file wins whole; a look-up is in memory and never touches the file system.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from relay.errors import RECIPIENT, NoPolicy
from relay.formats.mailbox import folded_mailbox
from relay.levels import ONLY_PLAINTEXT, OTP, PLAINTEXT, SMIME, LevelName
from relay.policy.chosen import AppliedRule, RuleLook, choose, meaning
from relay.policy.conditions import MailFacts
from relay.policy.content import MessageFacts
from relay.policy.file import PolicyFile
from relay.policy.floors import Floor
from relay.policy.names import (
    DEFAULT_FILE,
    FoldedAddress,
    Step,
    candidates,
    domain_file,
    may_be_route,
    parse_address,
    printable,
)
from relay.policy.patterns import Groups
from relay.policy.people import Fit, read_mailbox, read_recipient, read_sender
from relay.policy.require import Demand, Requirement, Requirements
from relay.policy.rules import PlacedRule
from relay.policy.settings import Chosen, held_for
from relay.policy.site import ANY_SITE, SiteFacts

if TYPE_CHECKING:
    from relay.policy.expected import Expected


_CHOSEN = tuple(each.name for each in fields(Chosen))
_values = attrgetter(*_CHOSEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision(Chosen):
    """How mail from `sender` to `recipient` (both as given) is sealed.

    `possible` are those of the levels that mail of this sender can have, with the right keys and size.
    `version` is that of the whole policy set; `looks_inside` says that some rules need the message. `max_bounce` is the
    largest message in bytes that gets a one-time pad, for the null sender; None for other senders.
    """

    sender: str
    recipient: str
    version: str
    possible: tuple[LevelName, ...] = ()
    looks_inside: bool = False
    max_bounce: int | None = None

    @property
    def in_clear(self) -> bool:
        """True if policy lets this mail out unsealed; nothing else ever does."""
        return self.levels == ONLY_PLAINTEXT

    @property
    def hold_for(self) -> float:
        """The time in seconds after which mail without a level is refused: 0 at once, infinite never."""
        return held_for(self.otherwise)

    @property
    def where(self) -> str:
        """`file:line`, for log lines."""
        return f"{self.source}:{self.line}"

    def hopeless(self, size: int) -> bool:
        """Whether a message of this size, in bytes, can never have any of the levels, whatever keys arrive."""
        return all(self.too_big(level, size) for level in self.possible)

    def too_big(self, level: LevelName, size: int) -> str:
        """Why a message of this size, in bytes, cannot have this level, or ""."""
        for limited, limit in self.max_size:
            if limited == level and size > limit:
                return f"{level}: the message has {size} bytes, and max_size is {limit}"
        if level == OTP.name and self.max_bounce is not None and size > self.max_bounce:
            return f"otp: a message from the null sender has {size} bytes, and max_bounce is {self.max_bounce}"
        return ""


@dataclass(frozen=True, slots=True)
class Lookup:
    """One file that was looked up: its name, the step, whether it exists and decides, and why not today."""

    file: str
    step: Step
    exists: bool
    decides: bool
    not_now: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a decision was made: the files looked up in order, down to the one that decided, its rules, and the floors.

    `decision` is None if the mail is held because no file covers the recipient. Then `held` says why and what to do;
    otherwise it is "". The recipient may be `inside`, at a domain of our own.
    """

    sender: str
    recipient: str
    directory: str
    version: str
    lookups: tuple[Lookup, ...] = ()
    decision: Decision | None = None
    rules: tuple[RuleLook, ...] = ()
    floors: tuple[RuleLook, ...] = ()
    held: str = ""
    inside: bool = False


@dataclass(frozen=True, slots=True)
class PolicySet:
    """All policy files of a directory, as read; immutable.

    `files` are by name (`example.org/alice.toml`), `owners` gives the peer of each peer's domain. `version` is 40
    hexadecimal digits that follow from all names and contents. `patterns` is the number of texts that the
    rules of all files compare with a message; 0 if none needs it. `demands` are the distinct requirements for arriving
    mail. `site` has the relevant settings of relay.toml. `floors` raise what any file says, `groups` are named
    patterns, `tests` are those of tests.toml.
    """

    directory: Path
    files: Mapping[str, PolicyFile]
    owners: Mapping[str, str]
    version: str
    patterns: int = 0
    demands: tuple[Demand, ...] = ()
    site: SiteFacts = ANY_SITE
    floors: tuple[PlacedRule, ...] = ()
    groups: Groups = field(default_factory=dict)
    tests: tuple[Expected, ...] = ()

    def decide(self, sender: str, recipient: str, content: MessageFacts | None = None) -> Decision:
        """How mail from `sender` ("" is the null sender) to `recipient` is sealed.

        Without `content` only rules apply that ask of the envelope alone. Raises NoPolicy if no file covers the
        recipient. It is also raised for a local part that may be a route to another domain with a file. So it is for a
        peer's domain if the file says plaintext and is for others. A policy file that has vanished must neither bounce
        mail nor let it out in clear.
        """
        address, file = self._covering(recipient)
        chosen = self._choose(file, sender, address, content)
        return self._decision(sender, recipient, file, chosen, self._peer(file, address))

    def explain(self, sender: str, recipient: str, content: MessageFacts | None = None) -> Explanation:
        """The same as `decide`, with an explanation; raises nothing."""
        directory = str(self.directory)
        lookups: list[Lookup] = []
        try:
            address, file = self._covering(recipient, lookups)
        except NoPolicy as error:
            return Explanation(sender, recipient, directory, self.version, tuple(lookups), held=str(error))
        rules: list[RuleLook] = []
        floors: list[RuleLook] = []
        chosen = self._choose(file, sender, address, content, rules, floors)
        decision = self._decision(sender, recipient, file, chosen, self._peer(file, address))
        return Explanation(
            sender,
            recipient,
            directory,
            self.version,
            tuple(lookups),
            decision,
            rules=tuple(rules),
            floors=tuple(floors),
            inside=address.domain in self.site.domains,
        )

    def covering(self, domain: str) -> PolicyFile | None:
        """The file for addresses at a domain (in A-labels) without a file of their own."""
        return self._find(candidates(FoldedAddress("", domain), self.site.tag_separators))

    def require(self, sender: str, content: MessageFacts | None = None) -> Requirements:
        """All requirements for mail from `sender` and all addresses in its From and Sender fields.

        If one of them is in doubt, the mail counts as from everybody of whom a file requires something.
        Raises MalformedMessage if the header of `content` has no end.
        """
        named: list[tuple[FoldedAddress, ...] | None] = []
        if sender:
            mailbox = read_mailbox(sender)
            named.append(None if mailbox is None else (mailbox,))
        if content is not None:
            named += [content.authors, content.senders]
        people = dict.fromkeys(address for addresses in named for address in addresses or ())
        requirements = dict.fromkeys(each for address in people for each in self.required_from(address))
        doubt = [Requirement(each, _DOUBT) for each in self.demands] if None in named else []
        return Requirements((*requirements, *doubt), self.version)

    def required_from(self, address: FoldedAddress) -> Iterator[Requirement]:
        """What the deciding file requires, and the files of all domains above it, up to one that drops it."""
        deciding: PolicyFile | None = None
        for name, step in candidates(address, self.site.tag_separators):
            file = self._find([(name, step)])
            if file is None or (deciding is not None and file.scope != "domain"):
                continue
            deciding = deciding or file
            if file.policy.require:
                because = f"{file.source}: mail from {printable(f'{address.local}@{address.domain}')}"
                peer = self._peer(deciding, address)
                yield Requirement(Demand(file.policy.require, file.policy.unprotected, peer), because)
            if file.policy.drops_require:
                return

    def _covering(self, recipient: str, lookups: list[Lookup] | None = None) -> tuple[FoldedAddress, PolicyFile]:
        """The recipient in comparable form, and the file that covers it. Raises NoPolicy if none may."""
        try:
            address = parse_address(recipient)
        except ValueError as error:
            raise _held(
                f"no policy can cover {recipient[:200]!r}: {error}", f"no policy can cover {RECIPIENT}: {error}"
            ) from error
        routed = may_be_route(address)
        names = candidates(address, self.site.tag_separators)
        file = self._find(islice(names, 1 if routed else None), lookups)
        if file is None:
            raise self._may_be_routed(address) if routed else self._nobody_covers(address)
        if held := self._held_in_clear(file, address):
            raise NoPolicy(held)
        return address, file

    def _find(self, names: Iterable[tuple[str, Step]], lookups: list[Lookup] | None = None) -> PolicyFile | None:
        """The first of these files that covers its address; appends each lookup to `lookups`."""
        for name, step in names:
            file = self.files.get(name)
            not_now = file.policy.not_now if file and file.policy.until else ""  # most files have no date
            decides = file is not None and not not_now and (step != "parent domain" or file.policy.subdomains)
            if lookups is not None:
                lookups.append(Lookup(name, step, file is not None, decides, not_now))
            if decides:
                return file
        return None

    def _choose(
        self,
        file: PolicyFile,
        sender: str,
        recipient: FoldedAddress,
        content: MessageFacts | None,
        looks: list[RuleLook] | None = None,
        floor_looks: list[RuleLook] | None = None,
    ) -> Chosen:
        """The settings of the file, raised. Mail of the null sender is of low priority: anybody can have us bounce."""
        if not file.policy.when and not self.floors:  # the common case
            return file.own if sender else replace(file.own, priority="low")
        asked = MailFacts(read_sender(sender, self.site.tag_separators), content, self.groups, self.site.tag_separators)
        floors = self._floors(asked, sender, recipient, floor_looks) if self.floors else ()
        if not file.policy.when and not floors:
            chosen = file.own
        elif content is None or looks is not None:
            chosen = choose(file, floors, asked, looks)
        else:
            key = (self.version, file.digest, sender, tuple((floor.number, doubt) for floor, doubt in floors))
            chosen = content.once(key, lambda: choose(file, floors, asked))
        return chosen if sender else replace(chosen, priority="low")

    def _floors(
        self, asked: MailFacts, sender: str, recipient: FoldedAddress, looks: list[RuleLook] | None
    ) -> tuple[AppliedRule, ...]:
        """The floors that apply to this mail; appends each floor to `looks`."""

        def fits() -> list[tuple[Fit, str]]:
            return [floor.when.fit(asked) for floor in self.floors]

        content = asked.content
        of_mail = fits() if content is None else content.once((self.version, sender), fits)
        to = read_recipient(recipient, self.site.tag_separators)
        inside = recipient.domain in self.site.domains
        applying: list[AppliedRule] = []
        for floor, fit in zip(self.floors, of_mail, strict=True):
            assert isinstance(floor.when, Floor)  # noqa: S101 - floors.toml has only these
            one, why = min(fit, floor.when.fit_of(to, self.groups, inside=inside), key=itemgetter(0))
            if one:
                applying.append((floor, why))
            if looks is not None:
                looks.append(RuleLook(floor.number, floor.line, bool(one), meaning(why) if one else why))
        return tuple(applying)

    def _peer(self, file: PolicyFile, address: FoldedAddress) -> str | None:
        """The peer whose keys seal for this recipient."""
        return file.policy.peer or self.owners.get(address.domain)

    def _decision(self, sender: str, recipient: str, file: PolicyFile, chosen: Chosen, peer: str | None) -> Decision:
        own = dict(zip(_CHOSEN, _values(chosen), strict=True))
        return Decision(
            **own | {"peer": peer},
            sender=sender,
            recipient=recipient,
            version=self.version,
            possible=self._possible(chosen.levels, sender, peer),
            looks_inside=file.looks_inside or any(floor.when.looks_inside for floor in self.floors),
            max_bounce=None if sender else self.site.max_bounce,
        )

    def _possible(self, levels: tuple[LevelName, ...], sender: str, peer: str | None) -> tuple[LevelName, ...]:
        """Those levels that mail of this sender can have, with the right keys: for smime it must be ours."""
        site, domain = self.site, folded_mailbox(sender.removesuffix(".")).rpartition("@")[2]
        ours = not sender or site.takes_from is None or domain in site.domains
        others = (site.takes_from or {}).get(peer or "", frozenset())
        taken = peer is not None and (ours or not others.isdisjoint((domain, "*")))
        return tuple(each for each in levels if each == PLAINTEXT or (ours if each == SMIME else taken))

    def _may_be_routed(self, address: FoldedAddress) -> NoPolicy:
        own, _ = next(candidates(address, self.site.tag_separators))
        cause = "may be read as a route to another domain, so only a file of its own can cover it"
        mailbox = f"{address.local[:200]!r} at {address.domain}"
        return _held(f"{mailbox} {cause}: {self.directory / own}", f"{RECIPIENT} {cause}")

    def _held_in_clear(self, file: PolicyFile, address: FoldedAddress) -> str:
        """Why mail is held although `file` says plaintext, or "" if it does not.

        Plaintext for others never covers a peer's domain, whatever rules and floors raise.
        """
        owner = self.owners.get(address.domain)
        if owner is None or file.scope == "person" or file.domain == address.domain:
            return ""
        if file.policy.levels != ONLY_PLAINTEXT:
            return ""
        return (
            f"{file.source} says plaintext, but {address.domain} belongs to peer {owner!r}: "
            f"create {self.directory / domain_file(address)}; only a file of its own lets mail to a peer out in clear"
        )

    def _nobody_covers(self, address: FoldedAddress) -> NoPolicy:
        domain, default = self.directory / domain_file(address), self.directory / DEFAULT_FILE
        create = f"create {domain}, or {default} for everybody without a file of their own"
        return _held(
            f"no policy covers {address.local!r} at {address.domain}: {create}",
            f"no policy covers {RECIPIENT}: {create}",
        )


def _held(cause: str, own_words: str) -> NoPolicy:
    error = NoPolicy(cause)
    error.own_words = own_words
    return error


_DOUBT = "mail whose sender or authors cannot be read without doubt counts as from everybody; it"
