"""The way out, but for what is sealed for this site: that goes the way in, at whichever listener it comes.
Standard: relay/FORMAT.md, the receiver's order; postsuper(1): what Postfix queues anew comes by its own pickup(8).

A mail server that queues mail anew hands what has arrived sealed to the filter of mail that leaves. Inside the site
policy has nothing to seal: users would get it unopened, and nobody would notice. So the incoming recipe handles it,
with all its rules, which hold for mail from anywhere. Sending sealed mail here gains nothing over the incoming
listener. Each pass removes one layer, so that there is no loop. Where there is no way in the mail is held.
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
    """A recipe for the listeners of mail that leaves; `incoming` is None where the relay opens no mail.

    `records` know what was let out of quarantine sealed as it was. `went_in` has, by the ids of mails that went the way
    in and whose clients are being answered, the recipe that took them.
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
        """As Outgoing.check_recipient: what the message is shows later."""
        self.outgoing.check_recipient(sender, recipient)

    def not_taken(self, mail: Mail, errors: Mapping[str, RelayError]) -> None:
        """As Outgoing.not_taken."""
        self.outgoing.not_taken(mail, errors)

    async def process(self, mail: Mail) -> Outcomes:
        """The outcomes of one way or the other. Raises TryLater or Refuse."""
        way_in = await self._way_in(mail)
        if way_in is None:
            return await self.outgoing.process(mail)
        outcomes = await way_in.process(mail)
        self.went_in[mail.id] = way_in
        return outcomes

    async def in_place(self, mail: Mail, fits: Callable[[bytes], bool]) -> InPlace:
        """The same, for a mail server that keeps the mail (milter)."""
        way_in = await self._way_in(mail)
        return await (self.outgoing if way_in is None else way_in).in_place(mail, fits)

    def client_answered(self, mail: Mail) -> None:
        """The client was there when it was answered."""
        self.went_in.pop(mail.id, self.outgoing).client_answered(mail)

    async def client_gone(self, mail: Mail, outcomes: Outcomes) -> None:
        """The client was gone before it could hear `outcomes`."""
        await self.went_in.pop(mail.id, self.outgoing).client_gone(mail, outcomes)

    async def _way_in(self, mail: Mail) -> Incoming | None:
        """The incoming recipe where the mail is sealed for this site. Raises SealedForUs where it cannot go there."""
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
        """Why the mail is one that arrives, "" where it is not.

        One that cannot be opened, as it seems, is one for a user of ours: where it arrives it would be put aside. For
        others it may be what we have sealed for a peer.
        """
        try:
            layer = await self.opener.layers().recognise(mail.message, mail.envelope.sender)
        except CannotOpen as error:
            return str(error) if any(self._ours(mail)) else ""
        return "it is sealed for this site" if layer is not None else ""

    def _all_may_go_in(self, mail: Mail) -> bool:
        """Mail to users of ours and to others at once is neither on its way in nor on its way out."""
        ours = self._ours(mail)
        return all(ours) or not any(ours)

    def _ours(self, mail: Mail) -> list[bool]:
        domains = self.opener.layers().config.site.domains
        return [domain_of(mailbox) in domains for mailbox in mail.envelope.mailboxes]

    async def _was_let_out(self, mail: Mail) -> bool:
        """Whether a person has released it as it is to all these recipients (`quarantine release --unopened`)."""
        name = let_out_name(await off_loop(mime.work(mail.message), identity, mail))
        return await self.records.all_have(name, mail.envelope.mailboxes)
