"""Releases messages from quarantine: opens them again, delivers, and only then deletes.
Each release is in the ledger, on disk, before anything leaves; unopened mail is delivered as received.

If a release is killed between the next hop's acceptance and the deletion, a repeated one delivers again. Between the
two there is only one transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

from relay.audit.entries import Event, LedgerEntry
from relay.audit.writing import Audit
from relay.errors import CannotOpen, DeliveryUnderWay, RelayError, StoreUnavailable, TryLater
from relay.formats import mime
from relay.forward import NextHop, NextHopResult
from relay.journey.opening import Opened
from relay.journey.opening.original import Originals
from relay.levels import PLAINTEXT
from relay.mail import Envelope, Mail, Outcomes, Recipient, recipient_name
from relay.quarantine.triage import identity, let_out_name
from relay.runtime.aio import off_loop
from relay.store.quarantine import Quarantine
from relay.store.quarantine_table import Kept


@dataclass(frozen=True, slots=True)
class Released:
    """The outcome for each recipient, and whether the message is gone, since all have it."""

    recipients: tuple[Recipient, ...]
    outcomes: Outcomes
    over: bool


@dataclass(frozen=True, slots=True)
class _Leaving:
    """A message as it will leave; `protection` is for the ledger."""

    mail: Mail
    protection: str
    peer: str
    opened: Opened | None = None


@dataclass(frozen=True, slots=True)
class Releaser:
    """The parts used. `max_hops` is that of incoming mail, `by` the administrator, for the ledger."""

    quarantine: Quarantine
    originals: Originals
    next_hop: NextHop
    audit: Audit
    max_hops: int
    by: str

    async def release(self, kept: Kept, to: Sequence[Recipient], *, unopened: bool = False) -> Released:
        """Delivers the message to these recipients; with `unopened`, sealed as received.

        Raises CannotOpen, or another RelayError; the message is unchanged then.
        """
        async with self._claimed(kept):
            leaving = await self._leaving(kept, to, unopened=unopened)
            accepted: list[str] = []
            try:
                # Before it leaves: nobody gets a mail out of quarantine without a record of who decided that.
                await self._record("released", kept, leaving.mail.envelope, leaving.protection, leaving.peer)
                if leaving.protection == "unopened":
                    await self._let_out(leaving.mail)
                handed = await self.next_hop.deliver(leaving.mail)
                accepted = _accepted(leaving.mail, handed)
            finally:
                # After the next hop's 250: noted before, a mail that was not sent would be taken for a copy.
                if leaving.opened is not None:
                    await self.originals.opener.settle(leaving.opened, [Recipient(each).mailbox for each in accepted])
        over = await self._delivered(kept, accepted + _served(leaving.opened, to))
        return Released(leaving.mail.envelope.recipients, handed.outcomes, over)

    async def _let_out(self, mail: Mail) -> None:
        """Notes the release before it leaves: the relay may see the mail again, and would quarantine it once more.

        Raises StoreUnavailable.
        """
        name = let_out_name(await off_loop(mime.work(mail.message), identity, mail))
        names = [recipient_name(name, mailbox) for mailbox in mail.envelope.mailboxes]
        await self.originals.opener.deliveries.remember(name, names)

    async def drop(self, kept: Kept) -> None:
        """Destroys the message for all waiting recipients. Raises StoreUnavailable, and TryLater as `release` does."""
        async with self._claimed(kept):
            await self._record("dropped", kept, kept.envelope, "nothing", kept.peer)
            await self.quarantine.drop(kept.id)

    @asynccontextmanager
    async def _claimed(self, kept: Kept) -> AsyncIterator[None]:
        """Holds the claim on the message. Raises TryLater."""
        if not await self._claim(kept):
            raise TryLater("it is being released at this moment, or is gone; look again in a quarter of an hour")
        try:
            yield
        except BaseException:
            with suppress(StoreUnavailable):  # then the claim expires
                await self.quarantine.unclaim(kept.id)
            raise

    async def _claim(self, kept: Kept) -> bool:
        """Claims the message; returns whether it succeeded. If cancelled, a claim obtained later is released."""
        claiming = asyncio.create_task(self.quarantine.claim(kept.id))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            with suppress(StoreUnavailable):
                if await claiming:
                    await self.quarantine.unclaim(kept.id)
            raise

    async def _delivered(self, kept: Kept, accepted: Sequence[str]) -> bool:
        try:
            return await self.quarantine.delivered(kept.id, accepted)
        except StoreUnavailable as error:
            names = ", ".join(accepted) or "nobody"
            raise StoreUnavailable(
                f"{names} HAS it, and a release would repeat it, as this was not noted: {error}"
            ) from error

    async def _leaving(self, kept: Kept, to: Sequence[Recipient], *, unopened: bool) -> _Leaving:
        message = await self.quarantine.message(kept.id)
        mail = Mail(replace(kept.envelope, recipients=tuple(to)), message, id=kept.mail_id, origin=kept.origin)
        if kept.reason == "unprotected":  # stored opened and marked
            return _Leaving(mail.with_header_in_bounces(), kept.protection or PLAINTEXT, kept.peer)
        if unopened:
            as_it_came = await self.originals.unopened(message)
            return _Leaving(mail.changed(message=as_it_came, trace=kept.trace), "unopened", kept.peer)
        original = await self.originals.open(message, mail.envelope.mailboxes, max_hops=self.max_hops, any_time=True)
        if original is None:
            raise CannotOpen("it is not sealed for this site, as this is configured now; --unopened hands it on sealed")
        opened = original.opened
        if not opened.due:
            raise _nobody_gets_it(opened)
        # Regardless of policy: an administrator has decided, and the mark names the unmet requirement.
        mail = opened.to_the_due(mail).changed(message=original.message, trace=kept.trace)
        return _Leaving(mail, opened.protection, opened.peer, opened)

    async def _record(self, event: Event, kept: Kept, envelope: Envelope, level: str, peer: str) -> None:
        entry = LedgerEntry(
            event=event,
            message=kept.digest,
            sender=envelope.sender,
            recipients=envelope.addresses,
            policy=f"quarantine {kept.id}",
            policy_version=self.originals.policies().version,
            peer=peer or None,
            mail=kept.mail_id,
            queue_id=kept.origin.ident,
            listed=(),
            level=level,
            reason=f"{kept.reason}: {kept.cause}",
            by=self.by,
        )
        await self.audit.record(entry)


def why_not(error: RelayError) -> str:
    """Why a message stays in quarantine, for output."""
    return f"{type(error).__name__}: {error}"


def _accepted(mail: Mail, handed: NextHopResult) -> list[str]:
    return [
        address for address, outcome in zip(mail.envelope.addresses, handed.outcomes, strict=True) if outcome is None
    ]


def _served(opened: Opened | None, to: Sequence[Recipient]) -> list[str]:
    """Recipients who already had it, from another copy of the message."""
    return [each.address for each in to if opened is not None and each.mailbox in opened.served]


def _nobody_gets_it(opened: Opened) -> RelayError:
    if opened.busy:
        return DeliveryUnderWay("it is being delivered at this moment; look again in a quarter of an hour")
    named = "everybody whom it names has it" if opened.served else "its sealed envelope names other recipients"
    return CannotOpen(f"{named}; `quarantine drop` destroys it")
