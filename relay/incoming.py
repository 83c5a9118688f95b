"""The journey in: recognise a sealed mail, open it, verify it, mark it, hand the original on.
Standard: a key taken from the KME is stored before it is used; nothing is handed on that was not verified.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from relay import mime
from relay.config import Direction
from relay.deliveries import Deliveries, Delivery
from relay.errors import PolicyRefuses
from relay.forward import NextHop
from relay.levels.content import off_loop
from relay.mail import Mail, Outcomes
from relay.opening import Opened, Opener
from relay.policy import Content, PolicySet

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Incoming:
    """What the recipe works with; one value for the life of the relay."""

    direction: Direction
    opener: Opener
    next_hop: NextHop
    deliveries: Deliveries
    policies: Callable[[], PolicySet]

    def check_recipient(self, sender: str, recipient: str) -> None:
        """Every recipient is taken: the mail server that hands us mail has already chosen them."""

    async def process(self, mail: Mail) -> Outcomes:
        """Opens the mail where it is sealed for us, and hands it on. Raises TryLater or Refuse."""
        await off_loop(len(mail.message), mime.check_carriable, mail.message, self.direction.max_hops)
        async with self.deliveries.of(mail) as delivery:
            if delivery.rest.envelope.recipients:
                await self._carry(delivery)
        return delivery.answer

    async def unheard(self, mail: Mail, outcomes: Outcomes) -> None:
        """The client was gone before it could hear `outcomes`."""
        await self.deliveries.unheard(mail, outcomes)

    async def _carry(self, delivery: Delivery) -> None:
        mail = delivery.rest
        opened = await self.opener.open(mail.message, mail.envelope.sender)
        if opened is None:
            await self._pass_on(delivery, mail)
            return
        await off_loop(len(opened.original), mime.check_carriable, opened.original, self.direction.max_hops)
        missed = self._unprotected(mail, opened.original, opened.protection, opened.peer)
        marked = mime.marked(opened.original, opened.protection, opened.peer + missed)
        handed = await self.next_hop.deliver(mail.with_message(marked))
        delivery.note(mail.envelope.recipients, handed.outcomes)
        if delivery.over:
            await self._done(opened)
        refused = [str(outcome) for outcome in handed.outcomes if outcome is not None]
        report = log.warning if refused else log.info
        report(
            "opened_and_sent" if len(refused) < len(handed.outcomes) else "opened_and_not_sent",
            protection=opened.protection,
            peer=opened.peer,
            key_IDs=[reference.key_ID for reference in opened.keys],
            recipients=len(handed.outcomes) - len(refused),
            not_accepted=refused[:10],
            octets=len(opened.original),
            next_hop=handed.next_hop,
            answer=handed.answer,
        )

    async def _done(self, opened: Opened) -> None:
        """The next hop has the mail: whatever fails now must not have it sent again."""
        try:
            await self.opener.done(opened)
        except Exception as error:  # noqa: BLE001 - the mail has left
            log.error("keys_not_marked_as_used", cause=str(error), kind=type(error).__name__)

    def _unprotected(self, mail: Mail, original: bytes, protection: str, peer: str) -> str:
        """What to add to the mark of a mail that arrived with less than it must, "" for enough.

        Raises PolicyRefuses where policy says refuse.
        """
        required = self.policies().require(mail.envelope.sender, Content(original))
        missed = required.missed(protection, peer) if required is not None else ""
        if required is None or not missed:
            return ""
        log.warning("arrived_unprotected", cause=missed, action=required.otherwise, policy_version=required.version)
        if required.otherwise == "refuse":
            raise PolicyRefuses(missed)
        return f"; required={required.level}"

    async def _pass_on(self, delivery: Delivery, mail: Mail) -> None:
        """Ordinary mail, which must not claim to have been protected by us."""
        message = mime.without_fields(mail.message, mime.OUR_MARKS)
        if missed := self._unprotected(mail, message, "", ""):
            message = b"X-QuMail-Protection: none" + missed.encode() + b"\r\n" + message
        handed = await self.next_hop.deliver(mail.with_message(mail.trace + message))
        delivery.note(mail.envelope.recipients, handed.outcomes)
        refused = [str(outcome) for outcome in handed.outcomes if outcome is not None]
        report = log.warning if refused else log.info
        report(
            "passed_unopened",
            recipients=len(handed.outcomes) - len(refused),
            not_accepted=refused[:10],
            octets=len(mail.message),
        )
