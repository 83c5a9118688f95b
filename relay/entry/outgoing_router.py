"""The outgoing recipe, except that what arrives for this site is held to the rules for incoming mail, at any listener.
Standard: relay/FORMAT.md, the receiver's order; postsuper(1): requeued mail arrives by Postfix's own pickup(8).

A mail server that requeues mail hands sealed incoming mail to the filter for outgoing mail. Inside the site policy
seals nothing, so users would get it unopened, unnoticed. Therefore the incoming recipe handles it, with all its rules.
An attacker gains nothing over sending to the incoming listener. Each pass opens a layer, so there is no loop: S/MIME
that would be handed on unopened is not taken in. Without [incoming] the mail is held.

A service of a mail server that lacks the filter for incoming mail hands a stranger's mail to the one for outgoing mail.
What is for us, in a peer's name, unsealed and without this site's mark has to meet the requirement for that peer. It is
marked and goes on its way; for quarantine or refusal the incoming recipe handles it. It hands on nothing then, so there
is no loop here either. A mixture of recipients is held then. Without [incoming] nothing is required of a peer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from relay.config import OutgoingSettings
from relay.errors import CannotOpen, RelayError, SealedForUs, TryLater
from relay.formats import mime
from relay.incoming import Incoming
from relay.journey.opening import MailOpener
from relay.mail import InPlace, Mail, Outcomes, domain_of
from relay.outgoing import Outgoing
from relay.policy.content import MessageFacts
from relay.policy.require import Missed
from relay.quarantine.triage import identity, let_out_name
from relay.runtime.aio import off_loop, off_loop_in_turn
from relay.store.delivery_records import DeliveryRecords

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OutgoingRouter:
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
        way_in, missed = await self._way(mail)
        if way_in is None:
            return await self.outgoing.process(mail, missed)
        outcomes = await way_in.process(mail)
        self.went_in[mail.id] = way_in
        return outcomes

    async def in_place(self, mail: Mail, fits: Callable[[bytes], bool]) -> InPlace:
        """As `process`, for a mail server that keeps the mail (milter)."""
        way_in, missed = await self._way(mail)
        if way_in is None:
            return await self.outgoing.in_place(mail, fits, missed)
        return await way_in.in_place(mail, fits)

    def client_answered(self, mail: Mail) -> None:
        """As Recipe.client_answered."""
        self.went_in.pop(mail.id, self.outgoing).client_answered(mail)

    async def client_gone(self, mail: Mail, outcomes: Outcomes) -> None:
        """As Recipe.client_gone."""
        await self.went_in.pop(mail.id, self.outgoing).client_gone(mail, outcomes)

    async def _way(self, mail: Mail) -> tuple[Incoming | None, Missed | None]:
        """The incoming recipe if the mail is an incoming one; else the requirement that its mark has to name, or None.

        Raises TryLater for a mixture that is neither incoming nor outgoing, or if it cannot be opened here.
        """
        if await off_loop(mime.header_work(mail.message), mime.is_sealed, mail.message):
            cause = await self._is_for_us(mail)
            if cause and await self._was_let_out(mail):
                return None, None
            if cause:
                return self._may_go_in(mail, cause, SealedForUs), None
        if self.incoming is not None and all(self._ours(mail)):
            smime = self.incoming.originals.smime
            # What the incoming recipe would hand on unopened has been there, or would come back without end.
            if smime is not None and await smime.opens(mail.message, mail.envelope.mailboxes):
                return self._may_go_in(mail, "it is S/MIME for a key of this site", SealedForUs), None
        with self._counted(mail):
            missed = await self._missed(mail)
        if missed is not None and missed.otherwise != "mark":
            return self._may_go_in(mail, missed.cause, TryLater), None
        return None, missed

    def _may_go_in(self, mail: Mail, cause: str, held: type[TryLater]) -> Incoming:
        """The incoming recipe for the mail. Raises `held` if it does not serve all recipients."""
        facts = {"cause": cause, "sender": mail.envelope.sender, "recipients": len(mail.envelope.recipients)}
        if self.incoming is None or not self._all_may_go_in(mail):
            if held is SealedForUs:
                log.warning("sealed_mail_held", **facts)
            else:
                log.warning("unprotected_mail_held", **facts)
            with self._counted(mail):
                raise held(f"{cause}, and this relay cannot take it in for all its recipients")
        log.warning("came_by_the_way_out", **facts)
        return self.incoming

    @contextmanager
    def _counted(self, mail: Mail) -> Iterator[None]:
        """Counts and records what is raised here as any outgoing mail that is held or refused."""
        try:
            yield
        except RelayError:
            with self.outgoing.tally.of(mail):
                raise

    async def _missed(self, mail: Mail) -> Missed | None:
        """What this mail lacks if it is for us and in a peer's name; None for what this site has marked."""
        if self.incoming is None or not any(self._ours(mail)):
            return None
        originals, work = self.incoming.originals, mime.work(mail.message)
        if await off_loop(work, originals.marks.is_proven, mail.message):
            return None
        content, sender = MessageFacts(mail.message), mail.envelope.sender
        required = await off_loop_in_turn(work, originals.policies().require, sender, content)
        missed = required.of_peers().missed("", "")
        if missed is not None and missed.otherwise == "mark":  # the incoming recipe says the rest itself
            self.incoming.canaries.came_unsealed(sender, [each.domain for each in content.authors or ()])
            log.warning(
                "arrived_unprotected", cause=missed.cause, action=missed.otherwise, policy_version=required.version
            )
        return missed

    async def _is_for_us(self, mail: Mail) -> str:
        """Why the mail is an incoming one, "" if it is not.

        A sealed mail that cannot be opened is incoming if it is for a user of ours: it would be quarantined there. For
        other recipients it may be one that we have sealed for a peer.
        """
        try:
            layer = await self.opener.layers().recognise(mail.message, mail.envelope.mailboxes)
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
