"""The outgoing recipe, except that mail sealed for this site is handled as incoming, at any listener.
Standard: relay/FORMAT.md, the receiver's order; postsuper(1): requeued mail arrives by Postfix's own pickup(8).

A mail server that requeues mail hands sealed incoming mail to the filter for outgoing mail. Inside the site policy
seals nothing, so users would get it unopened, unnoticed. Therefore the incoming recipe handles it, with all its rules.
An attacker gains nothing over sending to the incoming listener. Each pass removes one layer, so there is no loop.
Without [incoming] the mail is held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from relay.config import OutgoingSettings
from relay.errors import CannotOpen, RelayError, SealedForUs
from relay.formats import mime
from relay.incoming import Incoming
from relay.journey.opening import MailOpener
from relay.mail import InPlace, Mail, Outcomes, domain_of
from relay.outgoing import Outgoing
from relay.quarantine.triage import identity, let_out_name
from relay.runtime.aio import off_loop
from relay.store.delivery_records import DeliveryRecords

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Homeward:
    """The recipe of outgoing listeners; `incoming` is None if the relay opens no mail.

    `records` have what was released from quarantine unopened. `went_in` has the incoming recipe by mail id, until the
    client is answered.
    """

    outgoing: Outgoing
    incoming: Incoming | None
    opener: MailOpener
    records: DeliveryRecords
    went_in: dict[str, Incoming] = field(default_factory=dict, repr=False)

    @property
    def direction(self) -> OutgoingSettings:
        """The settings of outgoing mail."""
        return self.outgoing.direction

    def check_recipient(self, sender: str, recipient: str) -> None:
        """As Outgoing.check_recipient: the message is not known yet."""
        self.outgoing.check_recipient(sender, recipient)

    def not_taken(self, mail: Mail, errors: Mapping[str, RelayError]) -> None:
        """As Outgoing.not_taken."""
        self.outgoing.not_taken(mail, errors)

    async def process(self, mail: Mail) -> Outcomes:
        """Delivers by the recipe for this mail. Raises TryLater or Refuse."""
        way_in = await self._way_in(mail)
        if way_in is None:
            return await self.outgoing.process(mail)
        outcomes = await way_in.process(mail)
        self.went_in[mail.id] = way_in
        return outcomes

    async def in_place(self, mail: Mail, fits: Callable[[bytes], bool]) -> InPlace:
        """As `process`, for a mail server that keeps the mail (milter)."""
        way_in = await self._way_in(mail)
        return await (self.outgoing if way_in is None else way_in).in_place(mail, fits)

    def client_answered(self, mail: Mail) -> None:
        """As Recipe.client_answered."""
        self.went_in.pop(mail.id, self.outgoing).client_answered(mail)

    async def client_gone(self, mail: Mail, outcomes: Outcomes) -> None:
        """As Recipe.client_gone."""
        await self.went_in.pop(mail.id, self.outgoing).client_gone(mail, outcomes)

    async def _way_in(self, mail: Mail) -> Incoming | None:
        """The incoming recipe if the mail is sealed for this site. Raises SealedForUs if it cannot be opened here."""
        if not await off_loop(mime.header_work(mail.message), mime.is_sealed, mail.message):
            return None
        cause = await self._is_for_us(mail)
        if not cause or await self._was_let_out(mail):
            return None
        facts = {"cause": cause, "sender": mail.envelope.sender, "recipients": len(mail.envelope.recipients)}
        if self.incoming is None or not self._all_may_go_in(mail):
            log.warning("sealed_mail_held", **facts)
            with self.outgoing.tally.of(mail):  # counted and recorded as any mail that is held
                raise SealedForUs(f"{cause}, and this relay cannot open it for all its recipients")
        log.warning("came_by_the_way_out", **facts)
        return self.incoming

    async def _is_for_us(self, mail: Mail) -> str:
        """Why the mail is an incoming one, "" if it is not.

        A sealed mail that cannot be opened is incoming if it is for a user of ours: it would be quarantined there. For
        other recipients it may be one that we have sealed for a peer.
        """
        try:
            layer = await self.opener.layers().recognise(mail.message)
        except CannotOpen as error:
            return str(error) if any(self._ours(mail)) else ""
        return "it is sealed for this site" if layer is not None else ""

    def _all_may_go_in(self, mail: Mail) -> bool:
        """Whether all recipients are ours, or none is; a mixture is neither incoming nor outgoing."""
        ours = self._ours(mail)
        return all(ours) or not any(ours)

    def _ours(self, mail: Mail) -> list[bool]:
        domains = self.opener.layers().config.site.domains
        return [domain_of(mailbox) in domains for mailbox in mail.envelope.mailboxes]

    async def _was_let_out(self, mail: Mail) -> bool:
        """Whether it was released unopened to all these recipients (`quarantine release --unopened`)."""
        name = let_out_name(await off_loop(mime.work(mail.message), identity, mail))
        return await self.records.all_have(name, mail.envelope.mailboxes)
