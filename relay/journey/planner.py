"""Creates the plan for a mail from the policy decisions, its size, and the missing keys.
Standard: policies/README.md: levels are tried in order; mail that cannot be sealed is held or refused.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from cryptography import x509

from relay.config import Config
from relay.errors import (
    CannotOpen,
    CannotSeal,
    HeldForKeys,
    KeyUnavailable,
    MalformedMessage,
    PolicyHolds,
    PolicyRefuses,
    RefusedForSize,
    RelayError,
    TrippedWire,
    TryLater,
)
from relay.formats import cms, mime
from relay.formats.mailbox import folded_mailbox
from relay.journey.plan import Copy, Group, Planned
from relay.journey.tripwire import shown_fields
from relay.keys import KeyReference
from relay.keys.pads import plan_keys
from relay.levels import (
    ON_TOP,
    ONLY_PLAINTEXT,
    OTP,
    PLAINTEXT,
    PQC,
    QUANTUM,
    SEALING,
    SMIME,
    LevelName,
    bare,
)
from relay.mail import Recipient, domain_of
from relay.policy.content import MessageFacts
from relay.policy.decide import Decision, PolicySet
from relay.policy.strength import strength_of
from relay.runtime.aio import off_loop, off_loop_in_turn
from relay.schemes import Parties, Scheme, Supplies
from relay.schemes.padding import pack, padded_size

if TYPE_CHECKING:
    from relay.identity import Identity, PeerCertificates
    from relay.smime.sealing import SMIMESealer

MAX_COPIES_OCTETS = 256 * 1024 * 1024
"""Size, in bytes, of sealed copies from which on an attempt makes no more: at level smime a mail may have many."""
_TOO_MANY = "its other copies take the memory there is for a mail; the next attempt makes this one"

Decided = tuple[Recipient, Decision | RelayError]
"""A recipient and the policy decision, or the error."""

T = TypeVar("T")

NO_SMIME = "relay.toml has no [smime]"
RECIPIENT_OCTETS = 512
"""Cost of a decision for one recipient, or of comparing one text with a message, in bytes of other work."""


def decide(
    policies: PolicySet, sender: str, recipients: Iterable[Recipient], content: MessageFacts | None
) -> list[Decided]:
    """The policy decision, or the error, for each recipient."""
    decided: list[Decided] = []
    for recipient in recipients:
        try:
            decided.append((recipient, policies.decide(sender, recipient.address, content)))
        except RelayError as error:
            decided.append((recipient, error))
    return decided


def seconds_waited(content: MessageFacts, decided: Iterable[Decided]) -> float | None:
    """How long the mail has waited, in seconds, or None if policy does not need it. Raises MalformedMessage."""
    asked = any(isinstance(each, Decision) and 0 < each.hold_for < math.inf for _, each in decided)
    return content.waited(datetime.now(UTC)) if asked else None


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans with the capabilities of this relay and its peers: `levels` by name, `certificates` by peer name.

    `smime` seals at level smime, None without [smime].
    """

    config: Config
    levels: Mapping[str, Scheme]
    identity: Identity | None = None
    certificates: Mapping[str, PeerCertificates] = field(default_factory=dict)
    smime: SMIMESealer | None = None
    _parties: dict[str, Parties] = field(default_factory=dict, init=False, repr=False, compare=False)
    _known_ends: dict[tuple[str, str], cms.Ends] = field(default_factory=dict, init=False, repr=False, compare=False)

    def plan(
        self,
        decided: Iterable[Decided],
        size: int,
        waited: float | None = None,
        missing: Mapping[Copy, str] | None = None,
    ) -> tuple[Group, ...]:
        """Assigns every recipient to one group; `size` is that of the content, `waited` in seconds.

        `missing` has the copies without a key, and why; all other keys are assumed to be available.
        """
        groups: dict[Copy | str, list[Planned]] = {}
        errors: dict[str, RelayError] = {}
        for recipient, decision in decided:
            copy: Copy | None = None
            error: RelayError | None = None
            if isinstance(decision, RelayError):
                planned, error = Planned(recipient, None), decision
            else:
                copy, causes = self._best(decision, size, missing or {})
                inside = copy is not None and copy.in_clear and domain_of(recipient.mailbox) in self.config.site.domains
                planned = Planned(recipient, decision, causes, inside)
                if copy is None:
                    for_keys = any(self._copy(decision, level) in (missing or {}) for level in decision.levels)
                    error = _without_level(decision, size, causes, waited, for_keys=for_keys)
                elif (
                    not copy.in_clear
                    and copy.certificate is None
                    and (cause := _cannot_be_sealed(decision.sender, recipient))
                ):
                    copy, error = None, MalformedMessage(cause)
            if error is not None:
                errors[str(error)] = error
            groups.setdefault(copy or str(error), []).append(planned)
        return tuple(
            Group(tuple(members), key) if isinstance(key, Copy) else Group(tuple(members), error=errors[key])
            for key, members in groups.items()
        )

    async def carry_out(
        self,
        decided: Iterable[Decided],
        size: int,
        waited: float | None,
        attempt: Callable[[Group, Copy], Awaitable[T]],
    ) -> tuple[list[tuple[Group, T]], list[Group]]:
        """Executes the plan: the result of `attempt` for each copy, and the groups without one.

        If it raises KeyUnavailable, the plan is made again without that copy, for its recipients and all others of that
        peer who have none yet. For any other RelayError they fail. A copy that others may fall back to is made after
        theirs, so that they can share it.
        """
        missing: dict[Copy, str] = {}
        had: list[tuple[Group, T]] = []
        sealed = 0
        without: list[Group] = []
        waiting = list(decided)
        while waiting:
            work = RECIPIENT_OCTETS * len(waiting)
            plan = await off_loop_in_turn(work, self.plan, waiting, size, waited, missing)
            waiting = []
            failed: set[str | None] = set()
            for group in self._in_order(plan):
                if had:
                    await asyncio.sleep(0)  # a thousand recipients may need a thousand signatures
                if group.copy is None:
                    without.append(group)
                elif sealed * size > MAX_COPIES_OCTETS:
                    without.append(replace(group, copy=None, error=TryLater(_TOO_MANY)))
                elif group.copy.peer in failed:
                    waiting += _decided(group)
                else:
                    try:
                        had.append((group, await attempt(group, group.copy)))
                        sealed += not group.copy.in_clear
                    except KeyUnavailable as error:
                        missing[group.copy] = str(error)
                        failed.add(group.copy.peer)
                        waiting += _decided(group)
                    except RelayError as error:
                        without.append(replace(group, copy=None, error=error))
        return had, without

    async def foresee(
        self,
        decided: Iterable[Decided],
        size: int,
        waited: float | None = None,
        keys: Supplies | None = None,
        original: bytes | None = None,
    ) -> tuple[Group, ...]:
        """The plan that sealing would execute, with its quantum bits; without `keys`, as if all were available.

        Without the `original`, compression is not taken into account.
        """

        async def bits(group: Group, copy: Copy) -> int:
            if not copy.takes_key:
                return 0
            hidden = await self._hidden(group, copy, size, original)
            cost = plan_keys(hidden, None, any_size=False).cost
            if keys is not None:
                low = copy.priority == "low"
                cost = await keys.can_supply(copy.peer or "", hidden, low_priority=low) or cost
            return 8 * cost

        had, without = await self.carry_out(decided, size, waited, bits)
        return (*(replace(group, quantum_bits=number) for group, number in had), *without)

    async def _hidden(self, group: Group, copy: Copy, size: int, original: bytes | None) -> int:
        """As `hidden`, with compression if the original is given."""
        first = group.members[0].decision
        sender = first.sender if first is not None else ""
        if OTP.name in copy.layers and self.config.otp.compression and original is not None:
            envelope, _ = self.sealed_envelope(copy, sender, group.recipients)
            payload, _ = await off_loop(size, lambda: pack(mime.wrap_payload(original, envelope)))
            return padded_size(len(payload), self.config.otp.padding)
        return self.hidden(copy, sender, group.recipients, size)

    def hidden(self, copy: Copy, sender: str, recipients: Sequence[Recipient], size: int) -> int:
        """Number of pad bytes for a copy without compression, 0 without a pad.

        Raises MalformedMessage and CannotSeal.
        """
        if OTP.name not in copy.layers:
            return 0
        envelope, _ = self.sealed_envelope(copy, sender, recipients)
        return padded_size(len(mime.payload_header(envelope)) + size, self.config.otp.padding)

    def sealed_envelope(self, copy: Copy, sender: str, recipients: Sequence[Recipient]) -> tuple[bytes, bytes]:
        """The sealed envelope in DER, and its id, checked by our own receiver.

        Raises MalformedMessage if it cannot be encoded, CannotSeal if the peer would refuse it.
        """
        parties = self.parties(copy.peer or "")
        ends = self._ends(copy.peer or "", copy.protection)
        mailboxes = tuple(dict.fromkeys(each.mailbox for each in recipients))
        now = datetime.now(UTC).replace(microsecond=0)
        envelope = cms.SealedEnvelope(
            parties.master_sae, parties.slave_sae, copy.protection, now, _sealed_sender(sender), mailboxes
        )
        try:
            octets = envelope.encode()
        except ValueError as error:
            raise MalformedMessage("it has more recipients than can be sealed, or an address that is none") from error
        try:
            cms.read_sealed_envelope(mime.unwrap(mime.payload_header(octets)).envelope, ends)
        except CannotOpen as error:
            raise CannotSeal(f"its receiver would refuse it: {error}") from error
        return octets, envelope.id

    def _ends(self, peer: str, layers: str = "") -> cms.Ends:
        """What this peer will check our sealed envelope against, as far as we know."""
        if (peer, layers) not in self._known_ends:
            site, settings = self.config.site, self.config.peers[peer]
            domains = frozenset((*site.domains, *settings.takes_from))
            self._known_ends[peer, layers] = cms.Ends(site.name, site.sae_id, settings.sae_id, layers, domains)
        return self._known_ends[peer, layers]

    def left_for_peer(self, keys: Iterable[KeyReference]) -> float:
        """Minimum time, in seconds, in which the peer can fetch these keys after sealing; infinite without keys."""
        if not (groups := {key.kme_group for key in keys}):
            return math.inf
        # Keys of a group no longer in relay.toml may be gone.
        return min((kme.left_for_peer for kme in self.config.kmes.values() if kme.group in groups), default=0.0)

    def parties(self, peer: str) -> Parties:
        """Sender and receiver of mail sealed for this peer."""
        if peer not in self._parties:
            self._parties[peer] = Parties(
                master_sae=self.config.site.sae_id,
                slave_sae=self.config.peers[peer].sae_id,
                peer=peer,
                identity=self.identity,
                certificates=self.certificates.get(peer),
            )
        return self._parties[peer]

    def obstacle(self, decision: Decision, level: LevelName, size: int = 0) -> str:
        """Why a level is impossible for a message of this size, in bytes, or ""."""
        if level == PLAINTEXT:
            return ""
        if too_big := decision.too_big(level, size):
            return too_big
        if level == SMIME:
            cause = self._certificate(decision)[1]
            return f"{level}: {cause}" if cause else ""
        if decision.peer is None:
            return f"{level}: no peer is known for {decision.recipient}; set `peer`, or list its domain in [peers.*]"
        cause = self._not_taken(decision, level) or self.obstacle_for_peer(decision.peer, level)
        return f"{level}: {cause}" if cause else ""

    def layers(self, peer: str | None, level: LevelName) -> tuple[str, ...]:
        """The layers of a level, from the inside out, with the peer's further KEMs around pqc."""
        first, *on_top = level.split("+")
        settings = self.config.peers.get(peer or "")
        further = settings.further_kems if settings is not None and first == PQC.name else ()
        return (first, *further, *on_top)

    def obstacle_for_peer(self, peer: str, level: LevelName) -> str:
        """Why mail of any sender to this peer cannot have a level, or ""."""
        if level == SMIME:
            return "" if self.smime is not None else NO_SMIME
        if peer not in self.config.peers:
            return f"peer {peer!r} is known no more: its document or [peers.{peer}] is gone"
        for layer in self.layers(peer, level):
            if layer not in self.levels:
                return f"this relay cannot do {layer}"
            if cause := self._not_opened(peer, layer) or self.levels[layer].obstacle(self.parties(peer)):
                return cause
        return ""

    def _not_taken(self, decision: Decision, level: LevelName) -> str:
        """Why the peer would quarantine all mail of this sender, or ""."""
        peer = decision.peer
        if peer not in self.config.peers or level in decision.possible:
            return ""
        return (
            f"the sender's domain is none of site.domains, so peer {peer!r} would put the mail aside; where it has "
            f"that domain in `forwards` for us, write it in `takes_from` of [peers.{peer}]"
        )

    def seal_for_others(self, original: bytes, copy: Copy, mailboxes: Iterable[str]) -> bytes:
        """The message at level smime. Raises CannotSeal and MalformedMessage."""
        if self.smime is None or copy.certificate is None:
            raise CannotSeal(NO_SMIME if self.smime is None else "the certificate has just been removed")
        return self.smime.seal(original, copy.certificate, mailboxes)

    def _certificate(self, decision: Decision) -> tuple[x509.Certificate | None, str]:
        """The certificate for level smime, or None and why not."""
        if self.smime is None:
            return None, NO_SMIME
        return self.smime.certificate(decision.sender, decision.recipient)

    def acceptable(self, decision: Decision) -> set[str]:
        """The protections that satisfy a decision: those listed that this relay can do, also with a key on top."""
        protections: set[str] = set()
        for level in decision.levels:
            if level == SMIME and self._certificate(decision)[0] is not None:
                protections.add(level)
            elif level != PLAINTEXT and bare(level) in self.levels:
                layers = self.layers(decision.peer, level)
                protections.add("+".join(layers))
                if layers[-1] not in QUANTUM:
                    protections.add("+".join((*layers, ON_TOP)))
        return protections

    def first(self, decision: Decision) -> Copy:
        """The first copy of a decision, available or not."""
        return self._copy(decision, decision.levels[0])

    def _best(self, decision: Decision, size: int, missing: Mapping[Copy, str]) -> tuple[Copy | None, tuple[str, ...]]:
        """The first available copy, or None, and why those listed before it are not available."""
        causes: list[str] = []
        for level in decision.levels:
            if cause := self.obstacle(decision, level, size):
                causes.append(cause)
                continue
            copy = self._copy(decision, level)
            if not (cause := missing.get(copy, "")):
                return copy, tuple(causes)
            causes.append(f"{level}: {cause}")
        return None, tuple(causes)

    def _copy(self, decision: Decision, level: LevelName) -> Copy:
        """The copy at a level."""
        if level == PLAINTEXT:
            return Copy(None, ONLY_PLAINTEXT)
        layers = self.layers(decision.peer, level)
        certificate = self._certificate(decision)[0] if level == SMIME else None
        return Copy(decision.peer, layers, decision.priority if layers[-1] in QUANTUM else "normal", certificate)

    def _in_order(self, plan: Sequence[Group]) -> list[Group]:
        """Sorted: copies that the fewest other groups may fall back to first, of these the strongest first."""
        if len(plan) < 2:
            return list(plan)
        ways = [
            {self._copy(decision, level) for decision in group.decisions for level in decision.levels} for group in plan
        ]
        others: Counter[Copy | None] = Counter(copy for each in ways for copy in each)
        return sorted(plan, key=lambda group: (others[group.copy], -strength_of(group.protection)))

    def _not_opened(self, peer: str, level: str) -> str:
        """Why a peer cannot open a level: by its document, or for want of quantum keys; or ""."""
        document = self.certificates.get(peer)
        if document is not None and level in SEALING and (cause := document.not_opened(level)):
            return cause
        no_keys = level in QUANTUM and not self.config.peers[peer].kme_groups
        return f"no KME group is set for peer {peer!r}" if no_keys else ""


def _decided(group: Group) -> list[Decided]:
    return [(each.recipient, each.decision) for each in group.members if each.decision is not None]


def _without_level(
    decision: Decision, size: int, causes: Sequence[str], waited: float | None, *, for_keys: bool
) -> PolicyHolds | HeldForKeys | PolicyRefuses:
    """Holds or refuses, as policy says; mail that has `waited` (seconds) too long, or waits in vain, is refused.

    `for_keys`: a key was missing.
    """
    doubt = (str(decision.doubt),) if decision.doubt is not None else ()
    why = "; ".join((*causes, *doubt))
    error: PolicyHolds | HeldForKeys | PolicyRefuses
    if decision.hopeless(size):
        by_size = decision.hopeless(size) and not decision.hopeless(0)
        cause = f"{decision.where}: no level that is listed can ever be had: {why}"
        error = RefusedForSize(cause) if by_size else PolicyRefuses(cause)
    else:
        cause = f"{decision.where}: otherwise = {decision.otherwise!r}: {why}"
        if decision.hold_for == 0 or (waited is not None and waited >= decision.hold_for):
            error = PolicyRefuses(f"{cause}; it has waited for {waited:.0f} s" if waited is not None else cause)
        else:
            error = HeldForKeys(cause) if for_keys else PolicyHolds(cause)
    error.hint = decision.doubt.public if decision.doubt is not None else ""
    return error


def _sealed_sender(sender: str) -> str:
    """The sender for sealed envelopes: like Postfix after a milter, without one dot at the end."""
    return folded_mailbox(sender.removesuffix("."))


def _cannot_be_sealed(sender: str, recipient: Recipient) -> str:
    """Which of the two addresses cannot be in a sealed envelope, and why, or ""."""
    if sender and not cms.is_sender(_sealed_sender(sender)):
        whose = "sender"
    elif not cms.is_recipient(recipient.mailbox):
        whose = "recipient"
    else:
        return ""
    return f"the {whose}'s address is none, is too long, or has characters that no sealed mail may have"


def check_shown(message: bytes) -> None:
    """Raises MalformedMessage if visible fields are too long, or the tripwire parses them differently."""
    shown = mime.shown_header(message)
    try:
        shown_fields(shown)
    except TrippedWire as error:
        raise MalformedMessage(f"its header cannot be shown: {error}") from error
