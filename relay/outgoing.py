"""The journey out: policy, keys, seal, hand to the next hop; nothing leaves before everything is sealed.
Standard: DATA is answered with 250 only after `process` has returned (RFC 5321, 6.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from relay import mime
from relay.config import Direction
from relay.deliveries import Deliveries
from relay.forward import NextHop
from relay.levels.content import off_loop
from relay.mail import Mail
from relay.sealing import Form, Sealer, Weakened
from relay.shadow import Shadow
from relay.store.ledger import Entry, Ledger
from relay.tripwire import check_sealed

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What the recipe works with; one value for the life of the relay."""

    direction: Direction
    sealer: Sealer
    next_hop: NextHop
    ledger: Ledger
    deliveries: Deliveries
    shadow: Shadow | None = None

    def check_recipient(self, sender: str, recipient: str) -> None:
        """The answer to RCPT TO: raises PolicyHolds or PolicyRefuses where policy can already say so."""
        if self.shadow is None:
            self.sealer.check(sender, recipient)

    async def process(self, mail: Mail) -> None:
        """Seals the mail as policy wants for each recipient and hands it on. Raises TryLater or Refuse."""
        await off_loop(len(mail.message), mime.check_carriable, mail.message, self.direction.max_hops)
        if self.shadow is not None:
            await self._try_out(mail, self.shadow)
            return
        forms = await self.deliveries.begun_before(mail)
        known = {recipient.address for form in forms for recipient in form.recipients}
        if rest := [recipient for recipient in mail.envelope.recipients if recipient.address not in known]:
            forms += await self._sealed_anew(mail.to(rest))
        await self.deliveries.complete(mail, forms, self._hand_on)

    async def _sealed_anew(self, mail: Mail) -> list[Form]:
        forms = await self.sealer.seal(mail)
        # Before anything leaves: who gets less than the first level listed for him.
        await self.ledger.record(*_entries(mail, forms))
        return forms

    async def _try_out(self, mail: Mail, shadow: Shadow) -> None:
        """Shadow mode: says what would have become of the mail, and hands it on as it came."""
        await self.ledger.record(*await shadow.foresee(mail))
        answer = await self.next_hop.deliver(mail.with_message(mail.trace + mail.message))
        log.warning(
            "shadow_sent_unsealed",
            recipients=len(mail.envelope.recipients),
            octets=len(mail.message),
            next_hop=str(self.next_hop.address),
            answer=answer,
        )

    async def _hand_on(self, mail: Mail, form: Form) -> None:
        leaving = mail.to(form.recipients).with_message(mail.trace + form.message)
        if not form.in_clear:
            await off_loop(len(leaving.message), check_sealed, leaving.message)
        answer = await self.next_hop.deliver(leaving)
        report, event = (log.warning, "sent_in_clear") if form.in_clear else (log.info, "sealed_and_sent")
        report(
            event,
            protection=form.protection,
            peer=form.peer,
            key_IDs=[reference.key_ID for reference in form.keys],
            quantum_bits=form.quantum_bits,
            recipients=len(form.recipients),
            octets=len(leaving.message),
            policy=form.policy,
            policy_version=form.policy_version,
            next_hop=str(self.next_hop.address),
            answer=answer,
        )


def _entries(mail: Mail, forms: list[Form]) -> list[Entry]:
    """What the ledger keeps: one entry for all recipients whom one policy treats alike, for one reason."""
    alike: dict[tuple[int, str, str], list[Weakened]] = {}
    for number, form in enumerate(forms):
        for each in form.weakened:
            alike.setdefault((number, each.decision.where, each.reason), []).append(each)
    return [_entry(mail, forms[number], weakened) for (number, _, _), weakened in alike.items()]


def _entry(mail: Mail, form: Form, weakened: list[Weakened]) -> Entry:
    decision = weakened[0].decision
    return Entry.of(
        "plaintext" if form.in_clear else "downgrade",
        mail,
        [each.decision.recipient for each in weakened],
        policy=decision.where,
        policy_version=decision.version,
        peer=decision.peer,
        listed=decision.levels,
        used=form.protection,
        reason=weakened[0].reason,
    )
