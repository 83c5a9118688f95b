"""The journey out: policy, keys, seal, hand to the next hop; nothing leaves before everything is sealed.
Standard: DATA is answered with 250 only after `process` has returned (RFC 5321, 6.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from relay import mime
from relay.config import Config, Direction
from relay.errors import BadStructure, KeyUnavailable, PolicyHolds, PolicyRefuses, RelayError
from relay.forward import NextHop
from relay.keys import KeyReference, KeySource
from relay.levels import Level, Parties
from relay.mail import Mail, Recipient
from relay.policy import Decision, LevelName, PolicySet

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What the recipe works with; one value for the life of the relay."""

    direction: Direction
    sealer: Sealer
    next_hop: NextHop

    def check_recipient(self, sender: str, recipient: str) -> None:
        """The answer to RCPT TO: raises PolicyHolds or PolicyRefuses where policy can already say so."""
        self.sealer.check(sender, recipient)

    async def process(self, mail: Mail) -> None:
        """Seals the mail as policy wants for each recipient and hands it on. Raises TryLater or Refuse."""
        mime.check_carriable(mail.message, self.direction.max_hops)
        forms = await self.sealer.seal(mail)
        for form in forms:
            await self._hand_on(mail, form)

    async def _hand_on(self, mail: Mail, form: Form) -> None:
        leaving = mail.to(form.recipients).with_message(mail.trace + form.message)
        answer = await self.next_hop.deliver(leaving)
        report, event = (log.warning, "sent_in_clear") if form.in_clear else (log.info, "sealed_and_sent")
        report(
            event,
            protection=form.level,
            peer=form.peer,
            key_IDs=[reference.key_ID for reference in form.keys],
            recipients=len(form.recipients),
            octets=len(leaving.message),
            policy=form.policy,
            policy_version=form.policy_version,
            next_hop=str(self.next_hop.address),
            answer=answer,
        )


@dataclass(slots=True)
class Form:
    """One message as it will leave: who gets it, how it is protected, which policy said so.

    `policy` is `file:line` of the first recipient's decision; `keys` are those spent on it.
    """

    level: LevelName
    peer: str | None
    message: bytes = field(repr=False)
    keys: tuple[KeyReference, ...]
    policy: str
    policy_version: str
    recipients: list[Recipient] = field(default_factory=list)

    @property
    def in_clear(self) -> bool:
        """True where policy lets this message out unsealed."""
        return self.level == "plaintext"


_Tried = dict[tuple[str | None, LevelName], "Form | RelayError"]


@dataclass(frozen=True, slots=True)
class Sealer:
    """Turns one mail into the messages that may leave; one value for the life of the relay.

    `levels` are those that this relay can do, `sources` the key sources by KME group, and `policies` gives
    the policy set in force, asked once for each mail.
    """

    config: Config
    policies: Callable[[], PolicySet]
    levels: Mapping[str, Level]
    sources: Mapping[str, KeySource]

    def check(self, sender: str, recipient: str) -> None:
        """Raises PolicyHolds or PolicyRefuses where no level that policy lists can be done at all."""
        decision = self.policies().decide(sender, recipient)
        if all(self._obstacle(decision, level) for level in decision.levels):
            raise _otherwise(decision, [self._obstacle(decision, level) for level in decision.levels])

    async def seal(self, mail: Mail) -> list[Form]:
        """One form for each (peer, level), shared by all its recipients.

        All of them are made before any may leave. Raises PolicyHolds or PolicyRefuses where one recipient
        can get none of the levels listed for him.
        """
        policies = self.policies()
        original = mime.without_hidden_fields(mail.message)
        tried: _Tried = {}
        for recipient in mail.envelope.recipients:
            decision = policies.decide(mail.envelope.sender, recipient.address)
            form = await self._first_that_works(original, decision, tried)
            form.recipients.append(recipient)
        return [form for form in tried.values() if isinstance(form, Form) and form.recipients]

    async def _first_that_works(self, original: bytes, decision: Decision, tried: _Tried) -> Form:
        """The form of the first level that can be had; each (peer, level) is tried once for a mail."""
        causes: list[str] = []
        for level in decision.levels:
            if obstacle := self._obstacle(decision, level):
                causes.append(obstacle)
                continue
            group = (decision.peer, level)
            if group not in tried:
                tried[group] = await self._try(original, decision, level)
            outcome = tried[group]
            if isinstance(outcome, Form):
                return outcome
            causes.append(f"{level}: {outcome}")
        raise _otherwise(decision, causes)

    async def _try(self, original: bytes, decision: Decision, level: LevelName) -> Form | RelayError:
        form = Form(
            level, decision.peer, original, (), f"{decision.source}:{decision.line}", decision.version
        )
        if level == "plaintext":
            return form
        peer = self.config.peers[decision.peer or ""]
        parties = Parties(master_sae=self.config.site.sae_id, slave_sae=peer.sae_id)
        if self._already_sealed(original, parties):
            return form
        try:
            payload = mime.wrap_payload(original)
            sealed = await self.levels[level].seal(payload, parties, self.sources[peer.kme_group])
        except KeyUnavailable as error:
            return error
        form.message = mime.sealed_message(original, sealed.der)
        form.keys = sealed.keys
        return form

    def _obstacle(self, decision: Decision, level: LevelName) -> str:
        """Why a level cannot be done at all for this recipient, or "" where it can be tried."""
        if level == "plaintext":
            return ""
        if level not in self.levels:
            return f"{level}: this relay cannot do it"
        if decision.peer is None:
            return f"{level}: no peer is known for {decision.recipient}; set `peer`, or list its domain there"
        return ""

    def _already_sealed(self, message: bytes, parties: Parties) -> bool:
        """Whether we have sealed this for the same peer before: a second layer would help nobody."""
        if not mime.is_sealed(message):
            return False
        try:
            references = self.levels["aes"].references(mime.sealed_content(message))
        except BadStructure:
            return False
        ours = (parties.master_sae, parties.slave_sae)
        return any((reference.master_sae, reference.slave_sae) == ours for reference in references)


def _otherwise(decision: Decision, causes: list[str]) -> PolicyHolds | PolicyRefuses:
    cause = f"{decision.source}:{decision.line}: otherwise = {decision.otherwise!r}: {'; '.join(causes)}"
    return PolicyRefuses(cause) if decision.otherwise == "refuse" else PolicyHolds(cause)
