"""Turns one mail into the copies that may leave: carries out the plan, level by level and layer by layer.
Standard: the level files write the format; what cannot be sealed is held or refused, as policy says, and never plain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from relay import mime
from relay.aio import off_loop
from relay.errors import BadStructure, CannotOpen, CannotSeal, RelayError
from relay.keys import KeyReference
from relay.levels import SealedPayload
from relay.mail import Mail, Recipient
from relay.plan import Copy, Group, Planned
from relay.planner import Decided, Planner, decide, seconds_waited
from relay.policy import Content, CopyKeys, Decision, KeysWithReserve, PolicySet

log = structlog.get_logger(__name__)

PATTERNS = 10
RECIPIENT_OCTETS = 512
"""Comparing so many texts with a message, or deciding for one recipient, takes as long as other work on such octets."""
MAX_MADE = 10_000
"""How many sealed messages are known again when they come back; older ones are sealed once more."""


@dataclass(slots=True)
class SealedCopy:
    """One message as it will leave: who gets it, how it is protected, which policy said so.

    `protection` names the layers from the inside out, `pqc+aes` for instance, and `plaintext` where policy lets it out
    in clear. `policy` is `file:line` of the first recipient's decision; `keys` and `quantum_bits` are what was spent.
    `planned` says of each recipient what was passed over. A copy of an earlier try has none, and its `name` in the
    journal.
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

    @property
    def in_clear(self) -> bool:
        """True where policy lets this message out unsealed."""
        return self.protection == "plaintext"


@dataclass(frozen=True, slots=True)
class SealedMail:
    """The copies of a mail, and why there is none for the rest of its recipients, by address."""

    copies: list[SealedCopy]
    failures: dict[str, RelayError]


@dataclass(frozen=True, slots=True)
class Sealer:
    """Seals mails; one value for the life of the relay.

    `policies` gives the policy set in force, asked once for each mail. `made` has the SHA-256 of what was sealed of
    late, with the peer and the mailboxes that it is for.
    """

    planner: Planner
    policies: Callable[[], PolicySet]
    keys: KeysWithReserve
    made: dict[bytes, tuple[str, frozenset[str]]] = field(default_factory=dict, repr=False)

    def check(self, sender: str, recipient: str) -> None:
        """Raises PolicyHolds or PolicyRefuses where no level that policy lists can be done at all."""
        decision = self.policies().decide(sender, recipient)
        if decision.looks_inside or decision.hold_for is not None:
            return  # the message may raise the level, or tell how long it has waited
        [group] = self.planner.plan([(Recipient(recipient), decision)], 0)
        if group.error is not None:
            raise group.error

    async def seal(self, mail: Mail) -> SealedMail:
        """One copy for each (peer, layers), shared by all its recipients.

        A recipient who can get none of the levels listed for them fails, alone, with what their policy says then.
        """
        decided, original, seconds = await self._to_plan(mail)

        async def attempt(group: Group, copy: Copy) -> SealedCopy:
            return await self._copy(original, mail.envelope.sender, group, copy)

        had, without = await self.planner.carry_out(decided, len(original), seconds, attempt)
        failures = {each.address: group.error for group in without for each in group.recipients if group.error}
        return SealedMail([copy for _, copy in had], failures)

    async def foresee(self, mail: Mail) -> tuple[Group, ...]:
        """What `seal` would do now. Raises MalformedMessage."""
        decided, original, seconds = await self._to_plan(mail)
        return await self.planner.foresee(decided, len(original), seconds, self.keys)

    async def _to_plan(self, mail: Mail) -> tuple[list[Decided], bytes, float | None]:
        """What policy says, what would be sealed, and how long the mail has waited (seconds)."""
        content = Content(mail.message)
        decided = await _decided(self.policies(), mail, mail.envelope.recipients, content)
        original = await off_loop(content.size, mime.without_hidden_fields, mail.message)
        return decided, original, seconds_waited(content, decided)

    async def still_permitted(self, mail: Mail, copies: list[SealedCopy]) -> list[SealedCopy]:
        """These copies of an earlier try, without recipients whose policy has changed and wants another one now."""
        policies = self.policies()
        content = Content(mail.message)
        for copy in copies:
            if copy.policy_version != policies.version:
                decided = await _decided(policies, mail, copy.recipients, content)
                copy.recipients = [each for each, decision in decided if self._permits(decision, copy)]
        return [copy for copy in copies if copy.recipients]

    def _permits(self, decision: Decision | RelayError, copy: SealedCopy) -> bool:
        if isinstance(decision, RelayError):
            return False
        return decision.peer == copy.peer and copy.protection in self.planner.acceptable(decision)

    async def _copy(self, original: bytes, sender: str, group: Group, copy: Copy) -> SealedCopy:
        """Raises KeyUnavailable where the copy's quantum key is not to be had."""
        decision = group.decision
        assert decision is not None  # noqa: S101 - nobody is planned a copy without
        made = SealedCopy(
            copy.protection, copy.peer, original, decision.where, decision.version,
            recipients=group.recipients, planned=group.members,
        )  # fmt: skip
        if copy.in_clear:
            return made
        peer = copy.peer or ""
        if before := await off_loop(len(original), self._sealed_before, original, peer, made.recipients):
            made.protection, made.message = "sealed before", before
            return made
        try:
            sealed = await self._sealed(original, sender, group, copy)
        except CannotOpen as error:  # what a receiver would refuse is our fault here, and not the sender's
            raise CannotSeal(str(error)) from error
        made.keys, made.quantum_bits = sealed.keys, sealed.quantum_bits
        made.message, digest = await off_loop(len(sealed.der), _finished, original, sealed.der)
        self._note_made(digest, peer, made.recipients)
        return made

    async def _sealed(self, original: bytes, sender: str, group: Group, copy: Copy) -> SealedPayload:
        """The level, further KEMs around it, and then an aes layer, where the plan has them.

        The key of that layer is taken first: no work is done for a copy that cannot be had.
        """
        levels, parties = self.planner.levels, self.planner.parties(copy.peer or "")
        keys = CopyKeys(self.keys, low_priority=copy.priority == "low")
        if copy.key_on_top:
            await keys.draw(parties.peer, len(original))
        level, *around = copy.layers
        envelope = self.planner.sealed_envelope(copy, sender, group.recipients)
        sealed = await levels[level].seal(mime.wrap_payload(original, envelope), parties, keys)
        for layer in around:
            sealed = await levels[layer].seal(mime.wrap_enveloped(sealed.der), parties, keys)
        return sealed

    def _note_made(self, digest: bytes, peer: str, recipients: Sequence[Recipient]) -> None:
        """What is in this message will be known again. Only the event loop's thread changes what is known."""
        self.made[digest] = peer, frozenset(each.mailbox for each in recipients)
        if len(self.made) > MAX_MADE:
            del self.made[next(iter(self.made))]

    def _sealed_before(self, message: bytes, peer: str, recipients: Sequence[Recipient]) -> bytes:
        """The outer message again where this is what we sealed for the same people of late, b"" for everything else.

        What a message says of itself is not enough: anybody can put plaintext where a ciphertext should be.
        """
        if not mime.is_sealed(message):
            return b""
        try:
            der = mime.sealed_content(message)
        except BadStructure:
            return b""
        for_peer, mailboxes = self.made.get(hashlib.sha256(der).digest(), ("", frozenset()))
        ours = for_peer == peer and mailboxes.issuperset(each.mailbox for each in recipients)
        return mime.sealed_message(message, der) if ours else b""


async def _decided(policies: PolicySet, mail: Mail, recipients: Sequence[Recipient], content: Content) -> list[Decided]:
    """The decision for each recipient, or why there is none; beside the loop where that may take time."""
    read = content.size * (1 + policies.patterns // PATTERNS) if policies.looks_inside else 0
    work = read + RECIPIENT_OCTETS * len(recipients)
    return await off_loop(work, decide, policies, mail.envelope.sender, recipients, content)


def _finished(original: bytes, der: bytes) -> tuple[bytes, bytes]:
    """The outer message, and by what its content is known again."""
    return mime.sealed_message(original, der), hashlib.sha256(der).digest()
