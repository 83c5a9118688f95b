"""Turns one mail into the copies that may leave: executes the plan, level by level and layer by layer.
The schemes write the format; mail that cannot be sealed is held or refused, and never leaves in clear.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

from relay.counting import metrics
from relay.counting.board import Board, SpreadCell
from relay.errors import BadStructure, CannotOpen, CannotSeal, KeyUnavailable, KMEMisconfigured, RelayError
from relay.formats import mime
from relay.journey.marks import SiteMarks
from relay.journey.plan import Copy, Group, Planned
from relay.journey.planner import RECIPIENT_OCTETS, Decided, Planner, decide, seconds_waited
from relay.keys import KeyReference
from relay.keys.pads import Pad
from relay.keys.types import SealingKey
from relay.levels import AES, PLAINTEXT, SMIME
from relay.mail import Mail, Recipient, sealed_name
from relay.policy.content import MessageFacts
from relay.policy.decide import Decision, PolicySet
from relay.policy.strength import strength_of
from relay.runtime.aio import off_loop, off_loop_in_turn
from relay.schemes import KeysWithReserve, SealedPayload
from relay.store.secret import SiteSecret

PATTERNS = 10
PARTS_COST = 4
"""Cost of parsing the parts of a message, as a multiple of other work on its bytes."""


@dataclass(slots=True)
class SealedCopy:
    """One message as it will leave, with its recipients, protection and policy.

    `protection` names the layers from the inside out, such as `pqc+aes`, or `plaintext` if policy permits clear text.
    `policy` is `file:line` of the first recipient's decision; `keys` and `quantum_bits` are what was used. `planned`
    has the plan for each recipient; a copy of an earlier attempt has none, but its `name` in the store. `sealed` is its
    name in log and audit record at both sites, "" if unknown. `sealed_at` is a Unix time. With `may_have`, a next hop
    may have it without having replied. `listed` is what policy required then for each of its recipients
    (`_requirement`).
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
        """The mailboxes at our own domains, whose mail stays inside, in clear."""
        if not self.in_clear:
            return frozenset()
        return frozenset([each.recipient.mailbox for each in self.planned if each.stays_inside])

    @property
    def in_clear(self) -> bool:
        """Whether policy permits this message in clear."""
        return self.protection == PLAINTEXT


@dataclass(frozen=True, slots=True)
class SealedMail:
    """The copies of a mail, and the error for each recipient without one, by address.

    `policy_version` is that of the deciding policies, and `without` the plan for recipients without a copy, by mailbox.
    """

    copies: list[SealedCopy]
    failures: dict[str, RelayError]
    policy_version: str = ""
    without: dict[str, Planned] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sealer:
    """Seals mails; one value for the relay's lifetime.

    `planner` and `policies` return the values in force, once for each mail; a reload applies to the next one. By the
    `marks` it knows what it has sealed, and does not seal it again. The time that policy takes is counted on the
    `board`. `clock` returns Unix time.
    """

    planner: Callable[[], Planner]
    policies: Callable[[], PolicySet]
    keys: KeysWithReserve
    board: Board = field(default_factory=Board, repr=False)
    clock: Callable[[], float] = time.time
    marks: SiteMarks = field(default_factory=lambda: SiteMarks(SiteSecret(os.urandom(32))), repr=False)
    _policy_seconds: SpreadCell = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_policy_seconds", self.board.spread(metrics.STEP_SECONDS, "outgoing", "policy"))

    def check(self, sender: str, recipient: str) -> None:
        """Raises PolicyHolds or PolicyRefuses if no level that policy lists is possible.

        Raises MalformedMessage if one is, but one of the addresses cannot be sealed.
        """
        policies = self.policies()
        [(_, decision)] = decided = decide(policies, sender, [Recipient(recipient)], None)
        if isinstance(decision, Decision):
            # The outcome may depend on the message: its content, its age, its size.
            may_be_too_large = decision.hold_for > 0 and decision.max_size and not decision.hopeless(0)
            if decision.looks_inside or 0 < decision.hold_for < math.inf or may_be_too_large:
                return
        [group] = self.planner().plan(decided, 0)
        if group.error is not None:
            raise group.error  # the listener logs it, with the reply

    async def seal(self, mail: Mail) -> SealedMail:
        """Seals one copy for each (peer, layers), shared by all its recipients.

        A recipient for whom no listed level is available fails alone, as their policy says.
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
        """The plan that `seal` would execute now. Raises MalformedMessage."""
        planner = self.planner()
        decided, original, seconds = await _to_plan(self.policies(), mail)
        return await planner.foresee(decided, len(original), seconds, self.keys, original)

    async def still_permitted(self, mail: Mail, copies: list[SealedCopy]) -> list[SealedCopy]:
        """Copies of an earlier attempt, without recipients for whom policy now requires another protection.

        Copies for former peers are dropped. A copy now weaker than the first protection listed has its plan in
        `planned`, for the ledger.
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
        """The copies that the peer may be unable to open: its KME may have dropped the quantum keys.

        Excludes those that a next hop may have: another copy would be a second mail.
        """
        planner, now = self.planner(), self.clock()
        old = [each for each in copies if now - each.sealed_at > planner.left_for_peer(each.keys)]
        return [each for each in old if not each.may_have]

    async def _copy(self, planner: Planner, original: bytes, sender: str, group: Group, copy: Copy) -> SealedCopy:
        """Seals one copy. Raises KeyUnavailable if its quantum key is not available."""
        decision = group.members[0].decision
        assert decision is not None  # noqa: S101 - no copy is planned without one
        made = SealedCopy(
            copy.protection, copy.peer, original, decision.where, decision.version,
            recipients=group.recipients, planned=group.members, sealed_at=self.clock(),
            listed=frozenset([_requirement(each.decision) for each in group.members if each.decision is not None]),
        )  # fmt: skip
        if copy.in_clear:
            return made
        if copy.layers == (SMIME,):
            gone = await off_loop(mime.work(original), self._sealed_for_others, original, copy)
            if gone is not None:
                made.message = gone
                return made
            mailboxes = [each.mailbox for each in group.recipients]
            made.message = await off_loop(mime.work(original), planner.seal_for_others, original, copy, mailboxes)
            return made
        if await off_loop(mime.header_work(original), mime.is_sealed, original):
            work = mime.work(original)
            if before := await off_loop(work, self._sealed_before, planner, original, group, copy):
                made.protection, made.message = before
                return made
        try:
            sealed, envelope_id = await self._sealed(planner, original, sender, group, copy)
            made.message = await off_loop(len(sealed.pieces), mime.sealed_message, original, sealed.pieces)
        except KeyUnavailable as error:
            self.board.add(metrics.KEYS_MISSED, copy.peer or "", type(error).__name__)
            self.board.missed[copy.peer or ""] = str(error)
            raise
        except CannotOpen as error:  # a receiver would refuse it: our fault, not the sender's
            raise CannotSeal(str(error)) from error
        made.keys, made.quantum_bits = sealed.keys, sealed.quantum_bits
        made.sealed = sealed_name(envelope_id, planner.config.site.sae_id).hex()[:16]
        return made

    async def _sealed(
        self, planner: Planner, original: bytes, sender: str, group: Group, copy: Copy
    ) -> tuple[SealedPayload, bytes]:
        """Seals the level, further KEMs and an aes layer, as planned; also returns the sealed envelope's id.

        The key of the aes layer is taken first: no work is done for an unavailable copy.
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

    def _sealed_for_others(self, message: bytes, copy: Copy) -> bytes | None:
        """As `_sealed_before`, at level smime: the message is as it left, but for fields that servers have added."""
        try:
            sealed = mime.sealed_for_others(message)
        except BadStructure:
            return None
        return sealed if self.marks.is_sealed_here(message, sealed, copy.peer or "", SMIME) else None

    def _sealed_before(self, planner: Planner, message: bytes, group: Group, copy: Copy) -> tuple[str, bytes] | None:
        """Protection and message if this site has sealed this message for the same peer, else None.

        Also None if its layers are weaker than this copy's, or do not satisfy policy.
        """
        try:
            sealed = mime.sealed_message(message, mime.sealed_content(message))
        except BadStructure:
            return None
        enough = set.intersection(*(planner.acceptable(each.decision) for each in group.members if each.decision))
        for protection in enough:
            strong = strength_of(protection) >= strength_of(copy.protection)
            if strong and self.marks.is_sealed_here(message, sealed, copy.peer or "", protection):
                return protection, sealed
        return None


@dataclass(slots=True)
class CopyKeys:
    """FreshKeys for one copy; a key drawn in advance is returned first, and once.

    Only keys for `slave_sae` are returned: the peer's SAE ID may change while the copy is made.
    """

    keys: KeysWithReserve
    slave_sae: str
    low_priority: bool
    _drawn: SealingKey | None = field(default=None, init=False, repr=False)

    async def draw(self, peer: str, size: int) -> None:
        """Draws the key for a later layer. Raises KeyUnavailable."""
        self._drawn = await self.take(peer, size=size)

    async def take(self, peer: str, *, level: str = AES.name, size: int = 0) -> SealingKey:
        """A key of 256 bits for one message of `size` bytes to `peer`. Raises KeyUnavailable."""
        drawn, self._drawn = self._drawn, None
        if drawn is None:
            drawn = await self.keys.take(peer, level=level, size=size, low_priority=self.low_priority)
            self._check([drawn.reference])
        return drawn

    async def take_pad(self, peer: str, hidden: int) -> Pad:
        """A one-time pad for `hidden` octets. Raises KeyUnavailable."""
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
    """Whether a copy is weaker than what this decision lists first, but was not when it was sealed.

    The policy was edited since, or the day has changed.
    """
    first = planner.first(decision)
    return _requirement(decision) not in copy.listed and strength_of(copy.protection) < strength_of(first.protection)


def _requirement(decision: Decision) -> str:
    """What policy requires for a recipient: the levels in order."""
    return ",".join(decision.levels)


async def _to_plan(policies: PolicySet, mail: Mail) -> tuple[list[Decided], bytes, float | None]:
    """The policy decisions, the content to seal, and how long the mail has waited (seconds)."""
    content = MessageFacts(mail.message, mail.origin.login)
    decided = await _decided(policies, mail, mail.envelope.recipients, content)
    original = await off_loop(mime.work(mail.message), mime.without_hidden_fields, mail.message)
    return decided, original, await off_loop(mime.header_work(mail.message), seconds_waited, content, decided)


async def _decided(
    policies: PolicySet, mail: Mail, recipients: Sequence[Recipient], content: MessageFacts
) -> list[Decided]:
    """The decision, or the error, for each recipient; in a thread if that may take time."""
    patterns = PARTS_COST + policies.patterns // PATTERNS if policies.patterns else 0
    work = mime.work(content.message) * patterns + RECIPIENT_OCTETS * len(recipients)
    return await off_loop_in_turn(work, decide, policies, mail.envelope.sender, recipients, content)
