"""Turns one mail into the messages that may leave: for each recipient the first level of his policy that can be had.
Standard: the level files write the format; what cannot be sealed is held or refused, as policy says, and never plain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from relay import cms, mime
from relay.config import Config
from relay.errors import (
    BadStructure,
    CannotOpen,
    CannotSeal,
    KeyUnavailable,
    MalformedMessage,
    PolicyHolds,
    PolicyRefuses,
    RelayError,
)
from relay.keys import KeyReference
from relay.levels import FreshKeys, Level, Parties, Sealed
from relay.levels.content import off_loop
from relay.mail import Mail, Recipient
from relay.policy import (
    Content,
    Decision,
    DrawnBefore,
    KeysWithReserve,
    LevelName,
    LowPriority,
    PolicySet,
    Priority,
    Quantum,
)
from relay.policy.foresee import Foresight, Supplied

if TYPE_CHECKING:
    from relay.identity import Identity, PeerCertificates

log = structlog.get_logger(__name__)

PATTERNS = 10
RECIPIENT_OCTETS = 512
"""Comparing so many texts with a message, or deciding for one recipient, takes as long as other work on such octets."""
MAX_MADE = 10_000
"""How many sealed messages are known again when they come back; older ones are sealed once more."""


@dataclass(frozen=True, slots=True)
class Weakened:
    """A recipient who gets less than the first level that policy lists for him, or his mail in clear, and why."""

    decision: Decision
    used: str
    reason: str


@dataclass(slots=True)
class Form:
    """One message as it will leave: who gets it, how it is protected, which policy said so.

    `protection` names the layers from the inside out, `pqc+aes` for instance. `policy` is `file:line` of the
    first recipient's decision; `keys` and `quantum_bits` are what was spent, `without_quantum` says why the
    layer under a quantum key that was preferred is missing. `weakened` has one entry for each recipient who gets
    less than the first level listed for him. `name` is that of a form which waits in the journal.
    """

    protection: str
    peer: str | None
    message: bytes = field(repr=False)
    policy: str
    policy_version: str
    keys: tuple[KeyReference, ...] = ()
    quantum_bits: int = 0
    without_quantum: str = ""
    recipients: list[Recipient] = field(default_factory=list)
    weakened: list[Weakened] = field(default_factory=list)
    name: str = ""

    @property
    def in_clear(self) -> bool:
        """True where policy lets this message out unsealed."""
        return self.protection == "plaintext"


@dataclass(frozen=True, slots=True)
class Prepared:
    """The forms of a mail, and why there is none for the rest of its recipients, by address."""

    forms: list[Form]
    failures: dict[str, RelayError]


_Group = tuple[str | None, tuple[str, ...], Quantum, Priority]
"""Recipients who get the same: peer, layers, quantum, priority."""


@dataclass(slots=True)
class _Wanting:
    """A recipient who has no form yet: what policy says, how many of its levels were passed over, and why."""

    recipient: Recipient
    decision: Decision
    passed: int = 0
    causes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sealer:
    """Seals mails; one value for the life of the relay.

    `levels` are those that this relay can do, by name; `policies` gives the policy set in force, asked once for
    each mail; `certificates` are the peers' by peer name. `made` has the SHA-256 of what was sealed of late, with the
    peer and the mailboxes that it is for.
    """

    config: Config
    policies: Callable[[], PolicySet]
    levels: Mapping[str, Level]
    keys: KeysWithReserve
    identity: Identity | None = None
    certificates: Mapping[str, PeerCertificates] = field(default_factory=dict)
    made: dict[bytes, tuple[str, frozenset[str]]] = field(default_factory=dict, repr=False)

    def check(self, sender: str, recipient: str) -> None:
        """Raises PolicyHolds or PolicyRefuses where no level that policy lists can be done at all."""
        decision = self.policies().decide(sender, recipient)
        if decision.looks_inside or decision.hold_for is not None:
            return  # the message may raise the level, or tell how long it has waited
        obstacles = [self.obstacle(decision, level) for level in decision.levels]
        if all(obstacles):
            raise _otherwise(decision, obstacles)

    async def seal(self, mail: Mail) -> Prepared:
        """One form for each (peer, level), shared by all its recipients.

        A recipient who can get none of the levels listed for him fails, alone, with what his policy says then.
        """
        content = Content(mail.message)
        decided = await _decided(self.policies(), mail, mail.envelope.recipients, content)
        original = await off_loop(content.size, mime.without_hidden_fields, mail.message)
        failures = {each.address: error for each, error in decided if isinstance(error, RelayError)}
        wanting = [_Wanting(each, decision) for each, decision in decided if isinstance(decision, Decision)]
        forms: list[Form] = []
        failed: dict[_Group, RelayError] = {}
        while wanting:
            groups: dict[tuple[_Group, LevelName], list[_Wanting]] = {}
            for each in wanting:
                if level := self._next_level(each, failed, content.size):
                    groups.setdefault((_group(each.decision, level), level), []).append(each)
                else:
                    waited = content.waited(datetime.now(UTC))
                    failures[each.recipient.address] = _otherwise(each.decision, each.causes, waited)
            wanting = []
            for (group, level), members in groups.items():
                outcome = await self._try(original, mail.envelope.sender, members, level)
                if isinstance(outcome, Form):
                    forms.append(outcome)
                elif isinstance(outcome, KeyUnavailable):
                    failed[group] = outcome
                    wanting += members
                else:
                    failures |= {each.recipient.address: outcome for each in members}
        return Prepared(forms, failures)

    async def still_permitted(self, mail: Mail, forms: list[Form]) -> list[Form]:
        """These forms of an earlier try, without recipients whose policy has been changed and wants another one now."""
        policies = self.policies()
        content = Content(mail.message)
        for form in forms:
            if form.policy_version != policies.version:
                decided = await _decided(policies, mail, form.recipients, content)
                form.recipients = [each for each, decision in decided if self._permits(decision, form)]
        return [form for form in forms if form.recipients]

    def _permits(self, decision: Decision | RelayError, form: Form) -> bool:
        if isinstance(decision, RelayError):
            return False
        return decision.peer == form.peer and form.protection in self._protections(decision)

    def _protections(self, decision: Decision) -> set[str]:
        """What a form may say of itself that a decision has led to, or a stronger one."""
        found: set[str] = set()
        for level in decision.levels:
            layers = "+".join(decision.layers(level))
            if level == "plaintext" or level not in self.levels:
                continue
            found |= {"sealed before", f"{layers}+aes"}
            if self.levels[level].quantum or decision.quantum != "required":
                found.add(layers)
        return found

    def foresight(self, supplied: Supplied | None = None) -> Foresight:
        """Tells what this sealer would do; without `supplied`, as if all keys were there."""
        return Foresight(self.obstacle, self.payload_octets, supplied, self.config.otp.padding)

    def payload_octets(self, decision: Decision, level: LevelName, octets: int) -> int:
        """How many octets are sealed for a message of so many to this one recipient."""
        parties = self._parties(decision.peer or "")
        protection = "+".join(decision.layers(level))
        envelope = _sealed_envelope(parties, protection, decision.sender, [Recipient(decision.recipient)])
        return len(mime.payload_header(envelope)) + octets

    def _next_level(self, wanting: _Wanting, failed: Mapping[_Group, RelayError], octets: int) -> LevelName | None:
        """The first level that may still be had; why others may not is added to the causes."""
        decision = wanting.decision
        for level in decision.levels[wanting.passed :]:
            if cause := self.obstacle(decision, level, octets):
                wanting.causes.append(cause)
            elif (failure := failed.get(_group(decision, level))) is not None:
                wanting.causes.append(f"{level}: {failure}")
            else:
                return level
            wanting.passed += 1
        return None

    async def _try(
        self, original: bytes, sender: str, members: Sequence[_Wanting], level: LevelName
    ) -> Form | RelayError:
        """One form for all these recipients, who want the same."""
        try:
            form = await self._form(original, sender, members, level)
        except CannotOpen as error:  # what a receiver would refuse is our fault here, and not the sender's
            return CannotSeal(str(error))
        except RelayError as error:
            return error
        form.recipients = [each.recipient for each in members]
        form.weakened = [weak for each in members for weak in _weakened(each.decision, form, each.causes)]
        return form

    async def _form(self, original: bytes, sender: str, members: Sequence[_Wanting], level: LevelName) -> Form:
        decision = members[0].decision
        policy = decision.where
        if level == "plaintext":
            return Form("plaintext", decision.peer, original, policy, decision.version)
        parties = self._parties(decision.peer or "")
        recipients = [each.recipient for each in members]
        if before := await off_loop(len(original), self._sealed_before, original, parties.peer, recipients):
            return Form("sealed before", decision.peer, before, policy, decision.version)
        sealed, protection, without_quantum = await self._sealed(original, decision, level, parties, sender, recipients)
        message, digest = await off_loop(len(sealed.der), _finished, original, sealed.der)
        self._note_made(digest, parties.peer, recipients)
        return Form(
            protection,
            decision.peer,
            message,
            policy,
            decision.version,
            sealed.keys,
            sealed.quantum_bits,
            without_quantum,
        )

    async def _sealed(
        self,
        original: bytes,
        decision: Decision,
        name: LevelName,
        parties: Parties,
        sender: str,
        recipients: Sequence[Recipient],
    ) -> tuple[Sealed, str, str]:
        """The level, further KEMs around it, and then an aes layer, where policy wants them, or why that is missing.

        The key of that layer is taken first: the sealed envelope inside says whether it is there.
        """
        keys = self.keys if decision.priority == "normal" else LowPriority(self.keys)
        on_top, without_quantum = await self._quantum_key(decision, name, keys, len(original))
        layers = decision.layers(name)
        protection = "+".join((*layers, "aes") if on_top else layers)
        envelope = _sealed_envelope(parties, protection, sender, recipients)
        sealed = await self.levels[name].seal(mime.wrap_payload(original, envelope), parties, keys)
        for kem in layers[1:]:
            sealed = await self.levels[kem].seal(mime.wrap_enveloped(sealed.der), parties, keys)
        if on_top:
            sealed = await self.levels["aes"].seal(mime.wrap_enveloped(sealed.der), parties, on_top)
        return sealed, protection, without_quantum

    async def _quantum_key(
        self, decision: Decision, name: LevelName, keys: FreshKeys, octets: int
    ) -> tuple[DrawnBefore | None, str]:
        """The key for one more layer where policy wants that, or why there is none. Raises KeyUnavailable."""
        if self.levels[name].quantum or decision.quantum == "off":
            return None, ""
        try:
            return DrawnBefore(await keys.take(decision.peer or "", octets=octets)), ""
        except KeyUnavailable as error:
            if decision.quantum == "required":
                raise
            log.warning("no_quantum_enhancement", protection=name, peer=decision.peer, cause=str(error))
            return None, str(error)

    def obstacle(self, decision: Decision, name: LevelName, octets: int = 0) -> str:
        """Why a level cannot be done at all for a message of so many octets, or "" where it can be tried."""
        if name == "plaintext":
            return ""
        if too_big := decision.too_big(name, octets):
            return too_big
        layers = decision.layers(name)
        if missing := [layer for layer in layers if layer not in self.levels]:
            return f"{name}: this relay cannot do {missing[0]}"
        if decision.peer is None:
            return f"{name}: no peer is known for {decision.recipient}; set `peer`, or list its domain in [peers.*]"
        level = self.levels[name]
        needs_keys = level.quantum or decision.quantum == "required"
        if needs_keys and not self.config.peers[decision.peer].kme_groups:
            return f"{name}: no KME group is set for peer {decision.peer!r}"
        parties = self._parties(decision.peer)
        obstacles = (self.levels[layer].obstacle(parties) for layer in layers)
        return next((f"{name}: {obstacle}" for obstacle in obstacles if obstacle), "")

    def _parties(self, peer: str) -> Parties:
        return Parties(
            master_sae=self.config.site.sae_id,
            slave_sae=self.config.peers[peer].sae_id,
            peer=peer,
            identity=self.identity,
            certificates=self.certificates.get(peer),
        )

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


def _group(decision: Decision, level: LevelName) -> _Group:
    return decision.peer, decision.layers(level), decision.quantum, decision.priority


def _sealed_envelope(parties: Parties, protection: str, sender: str, recipients: Sequence[Recipient]) -> bytes:
    """The DER of what the payload says of itself. Raises MalformedMessage where an address cannot be written."""
    mailboxes = tuple(dict.fromkeys(each.mailbox for each in recipients))
    now = datetime.now(UTC).replace(microsecond=0)
    envelope = cms.SealedEnvelope(parties.master_sae, parties.slave_sae, protection, now, sender, mailboxes)
    try:
        envelope.check_addresses()
        return envelope.encode()
    except ValueError as error:
        raise MalformedMessage("an address is none, is longer than can be sealed, or is no Unicode") from error


async def _decided(
    policies: PolicySet, mail: Mail, recipients: Sequence[Recipient], content: Content
) -> list[tuple[Recipient, Decision | RelayError]]:
    """The decision for each recipient, or why there is none; beside the loop where that may take time."""

    def all_of_them() -> list[tuple[Recipient, Decision | RelayError]]:
        return [(each, _decision(policies, mail.envelope.sender, each.address, content)) for each in recipients]

    read = content.size * (1 + policies.patterns // PATTERNS) if policies.looks_inside else 0
    return await off_loop(read + RECIPIENT_OCTETS * len(recipients), all_of_them)


def _decision(policies: PolicySet, sender: str, recipient: str, content: Content) -> Decision | RelayError:
    try:
        return policies.decide(sender, recipient, content)
    except RelayError as error:
        return error


def _finished(original: bytes, der: bytes) -> tuple[bytes, bytes]:
    """The outer message, and by what its content is known again."""
    return mime.sealed_message(original, der), hashlib.sha256(der).digest()


def _weakened(decision: Decision, form: Form, causes: list[str]) -> list[Weakened]:
    """What the ledger has to know of one recipient: nothing, where he gets the first level listed, whole."""
    reasons = list(causes)
    if form.in_clear:
        reasons.append("policy lets this mail out in clear")
    elif form.without_quantum:
        reasons.append(f"no quantum key on top: {form.without_quantum}")
    return [Weakened(decision, form.protection, "; ".join(reasons))] if reasons else []


def _otherwise(decision: Decision, causes: list[str], waited: float | None = None) -> PolicyHolds | PolicyRefuses:
    """Hold or refuse, as policy says; what has `waited` (seconds) as long as `hold_for` is refused."""
    cause = f"{decision.where}: otherwise = {decision.otherwise!r}: {'; '.join(causes)}"
    if decision.otherwise == "refuse":
        return PolicyRefuses(cause)
    if decision.hold_for is not None and waited is not None and waited >= decision.hold_for:
        return PolicyRefuses(f"{cause}; it has waited for {waited:.0f} s, and hold_for is {decision.hold_for:.0f} s")
    return PolicyHolds(cause)
