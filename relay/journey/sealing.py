"""Turns one mail into the copies that may leave: carries out the plan, level by level and layer by layer.
Standard: the level files write the format; what cannot be sealed is held or refused, as policy says, and never plain.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

import structlog

from relay.counting import metrics
from relay.counting.board import Board, SpreadCell
from relay.errors import BadStructure, CannotOpen, CannotSeal, KeyUnavailable, KMEMisconfigured, RelayError
from relay.formats import mime
from relay.formats.pieces import Octets, Pieces
from relay.journey.plan import Copy, Group, Planned
from relay.journey.planner import RECIPIENT_OCTETS, Decided, Planner, decide, seconds_waited
from relay.keys import KeyReference
from relay.keys.pads import Pad
from relay.keys.types import SealingKey
from relay.levels import AES, PLAINTEXT
from relay.mail import Mail, Recipient, sealed_name
from relay.policy.content import MessageFacts
from relay.policy.decide import Decision, PolicySet
from relay.policy.strength import strength_of
from relay.runtime.aio import off_loop, off_loop_in_turn
from relay.schemes import KeysWithReserve, SealedPayload
from relay.store.sealed_here import SealedHere

log = structlog.get_logger(__name__)

PATTERNS = 10
PARTS_COST = 4
"""Cost of finding the parts of a message, as a multiple of other work on its bytes."""


@dataclass(slots=True)
class SealedCopy:
    """One message as it will leave: who gets it, how it is protected, which policy said so.

    `protection` names the layers from the inside out, `pqc+aes` for instance, and `plaintext` where policy lets it out
    in clear. `policy` is `file:line` of the first recipient's decision; `keys` and `quantum_bits` are what was spent.
    `planned` says of each recipient what was passed over. A copy of an earlier attempt has none, and its `name` in the
    store. `sealed` is what log and audit record call it at both sites, "" where it is not known. `sealed_at` is when
    it was made, in seconds since 1970. A next hop that gave no verdict `may_have` it. `listed` is what policy wanted
    then for each of its recipients (`_wanted`).
    """

    protection: str
    peer: str | None
    message: bytes = field(repr=False)
    policy: str
    policy_version: str
    keys: tuple[KeyReference, ...] = ()
    quantum_bits: int = 0
    recipients: list[Recipient] = field(default_factory=list)
    planned: tuple[Planned, ...] = ()
    name: str = ""
    sealed: str = ""
    sealed_at: float = 0.0
    may_have: bool = False
    listed: frozenset[str] = frozenset()

    @property
    def inside(self) -> frozenset[str]:
        """The mailboxes of those at domains of our own, whose mail does not leave: it is in clear."""
        if not self.in_clear:
            return frozenset()
        return frozenset([each.recipient.mailbox for each in self.planned if each.stays_inside])

    @property
    def in_clear(self) -> bool:
        """True where policy lets this message out unsealed."""
        return self.protection == PLAINTEXT


@dataclass(frozen=True, slots=True)
class SealedMail:
    """The copies of a mail, and the cause for each recipient without one, by address.

    `policy_version` is that of the policies that said so, and `without` what was planned for the rest, by mailbox.
    """

    copies: list[SealedCopy]
    failures: dict[str, RelayError]
    policy_version: str = ""
    without: dict[str, Planned] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sealer:
    """Seals mails; one value for the relay's lifetime.

    `planner` gives what this relay and its peers can do, `policies` the policy set in force, each asked once for each
    mail. What is read again while it is sealed counts for the next one. `made` has what was sealed of late, by its
    SHA-256: what comes back is not sealed again. How long policy takes is on the `board`. `clock` gives seconds since
    1970.
    """

    planner: Callable[[], Planner]
    policies: Callable[[], PolicySet]
    keys: KeysWithReserve
    board: Board = field(default_factory=Board, repr=False)
    clock: Callable[[], float] = time.time
    made: SealedHere = field(default_factory=SealedHere, repr=False)
    _policy_seconds: SpreadCell = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_policy_seconds", self.board.spread(metrics.STEP_SECONDS, "outgoing", "policy"))

    def check(self, sender: str, recipient: str) -> None:
        """Raises PolicyHolds or PolicyRefuses where no level that policy lists can be done at all.

        Raises MalformedMessage where it can, and one of the addresses cannot be sealed.
        """
        policies = self.policies()
        [(_, decision)] = decided = decide(policies, sender, [Recipient(recipient)], None)
        if isinstance(decision, Decision):
            # The message may raise its level, have waited, or be too large.
            may_be_refused = decision.impossible not in (None, decision.otherwise) and not decision.hopeless(0)
            if decision.looks_inside or decision.hold_for is not None or may_be_refused:
                return
        [group] = self.planner().plan(decided, 0)
        if group.error is not None:
            log.warning("not_sealed", cause=str(group.error), policy_version=policies.version)
            raise group.error

    async def seal(self, mail: Mail) -> SealedMail:
        """One copy for each (peer, layers), shared by all its recipients.

        A recipient who can get none of the levels listed for them fails, alone, with what their policy says then.
        """
        planner, policies = self.planner(), self.policies()
        began = perf_counter()
        decided, original, seconds = await _to_plan(policies, mail)
        self._policy_seconds.observe(perf_counter() - began)

        attempt = partial(self._copy, planner, original, mail.envelope.sender)
        had, without = await planner.carry_out(decided, len(original), seconds, attempt)
        failures = {each.address: group.error for group in without for each in group.recipients if group.error}
        planned = {each.recipient.mailbox: each for group in without for each in group.members}
        return SealedMail([copy for _, copy in had], failures, policies.version, planned)

    async def foresee(self, mail: Mail) -> tuple[Group, ...]:
        """What `seal` would do now. Raises MalformedMessage."""
        planner = self.planner()
        decided, original, seconds = await _to_plan(self.policies(), mail)
        return await planner.foresee(decided, len(original), seconds, self.keys, original)

    async def still_permitted(self, mail: Mail, copies: list[SealedCopy]) -> list[SealedCopy]:
        """These copies of an earlier attempt, without recipients whose policy has changed and requires another one now.

        None of them is for a former peer. A copy that is less than policy lists first by now has
        that `planned`, for the ledger.
        """
        planner, policies = self.planner(), self.policies()
        content = MessageFacts(mail.message, mail.origin.login)
        for copy in copies:
            decided = await _decided(policies, mail, copy.recipients, content)
            kept = [(each, decision) for each, decision in decided if _permits(planner, decision, copy)]
            copy.recipients = [each for each, _ in kept]
            copy.planned = tuple(
                Planned(each, decision, (f"{copy.protection}: sealed at an earlier attempt, under other policies",))
                for each, decision in kept
                if isinstance(decision, Decision) and _falls_short(planner, decision, copy)
            )
        return [copy for copy in copies if copy.recipients]

    def outlived(self, copies: Iterable[SealedCopy]) -> list[SealedCopy]:
        """Those that the peer may be unable to open by now: its KME may have dropped the quantum keys.

        Not those that a next hop may have: a second form of these would be a second mail.
        """
        planner, now = self.planner(), self.clock()
        old = [each for each in copies if now - each.sealed_at > planner.left_for_peer(each.keys)]
        return [each for each in old if not each.may_have]

    async def _copy(self, planner: Planner, original: bytes, sender: str, group: Group, copy: Copy) -> SealedCopy:
        """Raises KeyUnavailable where the copy's quantum key is not available."""
        decision = group.members[0].decision
        assert decision is not None  # noqa: S101 - nobody is planned a copy without
        made = SealedCopy(
            copy.protection, copy.peer, original, decision.where, decision.version,
            recipients=group.recipients, planned=group.members, sealed_at=self.clock(),
            listed=frozenset([_wanted(each.decision) for each in group.members if each.decision is not None]),
        )  # fmt: skip
        if copy.in_clear:
            return made
        if await off_loop(mime.header_work(original), mime.is_sealed, original):
            work = mime.work(original)
            if before := await off_loop(work, self._sealed_before, planner, original, group, copy):
                made.protection, made.message = before
                return made
        try:
            sealed, envelope_id = await self._sealed(planner, original, sender, group, copy)
            made.message, digest = await off_loop(len(sealed.pieces), _finished, original, sealed.pieces)
        except KeyUnavailable as error:
            self.board.add(metrics.KEYS_MISSED, copy.peer or "", type(error).__name__)
            self.board.missed[copy.peer or ""] = str(error)
            raise
        except CannotOpen as error:  # what a receiver would refuse is our fault here, and not the sender's
            raise CannotSeal(str(error)) from error
        made.keys, made.quantum_bits = sealed.keys, sealed.quantum_bits
        made.sealed = sealed_name(envelope_id, planner.config.site.sae_id).hex()[:16]
        # Only the event loop's thread adds to it: two threads might lose an entry.
        self.made.add(digest, copy.peer or "", made.protection, [each.mailbox for each in made.recipients])
        return made

    async def _sealed(
        self, planner: Planner, original: bytes, sender: str, group: Group, copy: Copy
    ) -> tuple[SealedPayload, bytes]:
        """The level, further KEMs around it, and then an aes layer, where the plan has them; the sealed envelope's id.

        The key of that layer is taken first: no work is done for a copy that is unavailable.
        """
        levels, parties = planner.levels, planner.parties(copy.peer or "")
        keys = CopyKeys(self.keys, parties.slave_sae, low_priority=copy.priority == "low")
        if copy.key_on_top:
            await keys.draw(parties.peer, len(original))
        level, *around = copy.layers
        work = RECIPIENT_OCTETS * len(group.members)
        envelope, envelope_id = await off_loop(work, planner.sealed_envelope, copy, sender, group.recipients)
        sealed = await levels[level].seal(mime.wrap_payload(original, envelope), parties, keys)
        for layer in around:
            sealed = await levels[layer].seal(mime.wrap_enveloped(sealed.pieces), parties, keys)
        return sealed, envelope_id

    def _sealed_before(self, planner: Planner, message: bytes, group: Group, copy: Copy) -> tuple[str, bytes] | None:
        """Protection and outer message again where this is what we sealed for the same people of late.

        None for everything else, and for layers that are less than this copy would have, or not what policy requires.
        What a message says of itself is not enough: anybody can put plaintext where a ciphertext should be.
        """
        try:
            der = mime.sealed_content(message)
        except BadStructure:
            return None
        digest, mailboxes = hashlib.sha256(der).digest(), [each.mailbox for each in group.recipients]
        enough = set.intersection(*(planner.acceptable(each.decision) for each in group.members if each.decision))
        for protection in enough:
            strong = strength_of(protection) >= strength_of(copy.protection)
            if strong and self.made.has(digest, copy.peer or "", protection, mailboxes):
                return protection, mime.sealed_message(message, der)
        return None


@dataclass(slots=True)
class CopyKeys:
    """FreshKeys for one copy; a key that was drawn before it was needed is given first, and once.

    Only keys for `slave_sae` are given: the peer may get another SAE ID while the copy is made.
    """

    keys: KeysWithReserve
    slave_sae: str
    low_priority: bool
    _drawn: SealingKey | None = field(default=None, init=False, repr=False)

    async def draw(self, peer: str, size: int) -> None:
        """Takes the key for a later layer. Raises KeyUnavailable."""
        self._drawn = await self.take(peer, size=size)

    async def take(self, peer: str, *, level: str = AES.name, size: int = 0) -> SealingKey:
        """A key of 256 bits for one message of `size` bytes to `peer`. Raises KeyUnavailable."""
        drawn, self._drawn = self._drawn, None
        if drawn is None:
            drawn = await self.keys.take(peer, level=level, size=size, low_priority=self.low_priority)
            self._check([drawn.reference])
        return drawn

    async def take_pad(self, peer: str, hidden: int) -> Pad:
        """A one-time pad that hides `hidden` octets. Raises KeyUnavailable."""
        pad = await self.keys.take_pad(peer, hidden, low_priority=self.low_priority)
        self._check(each.reference for each in pad.keys)
        return pad

    def _check(self, references: Iterable[KeyReference]) -> None:
        if others := {each.slave_sae for each in references} - {self.slave_sae}:
            raise KMEMisconfigured(f"the peer's SAE has just changed from {self.slave_sae!r} to {others.pop()!r}")


def _permits(planner: Planner, decision: Decision | RelayError, copy: SealedCopy) -> bool:
    if isinstance(decision, RelayError):
        return False
    configured = copy.peer is None or copy.peer in planner.config.peers
    return configured and decision.peer == copy.peer and copy.protection in planner.acceptable(decision)


def _falls_short(planner: Planner, decision: Decision, copy: SealedCopy) -> bool:
    """Whether a copy is weaker than what this decision lists first, and it was not so when it was sealed.

    By an edit since, or since a day has passed: the set is the same then.
    """
    first = planner.first(decision)
    return _wanted(decision) not in copy.listed and strength_of(copy.protection) < strength_of(first.protection)


def _wanted(decision: Decision) -> str:
    """What policy requires for a recipient: its levels in their order, and when quantum keys go on top."""
    return f"{','.join(decision.levels)} {decision.quantum}"


async def _to_plan(policies: PolicySet, mail: Mail) -> tuple[list[Decided], bytes, float | None]:
    """What policy says, what would be sealed, and how long the mail has waited (seconds)."""
    content = MessageFacts(mail.message, mail.origin.login)
    decided = await _decided(policies, mail, mail.envelope.recipients, content)
    original = await off_loop(mime.work(mail.message), mime.without_hidden_fields, mail.message)
    return decided, original, await off_loop(mime.header_work(mail.message), seconds_waited, content, decided)


async def _decided(
    policies: PolicySet, mail: Mail, recipients: Sequence[Recipient], content: MessageFacts
) -> list[Decided]:
    """The decision for each recipient, or why there is none; beside the loop where that may take time."""
    patterns = PARTS_COST + policies.patterns // PATTERNS if policies.patterns else 0
    work = mime.work(content.message) * patterns + RECIPIENT_OCTETS * len(recipients)
    return await off_loop_in_turn(work, decide, policies, mail.envelope.sender, recipients, content)


def _finished(original: bytes, sealed: Pieces) -> tuple[bytes, bytes]:
    """The outer message, encrypted and written piece by piece, and by what its content is known again."""
    digest = hashlib.sha256()

    def seen() -> Iterator[Octets]:
        for piece in sealed.make():
            digest.update(piece)
            yield piece

    return mime.sealed_message(original, Pieces(len(sealed), seen)), digest.digest()
