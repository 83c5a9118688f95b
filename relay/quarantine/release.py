"""Lets messages out of quarantine by a person's decision: opens once more, hands on, and only then forgets.
Standard: the ledger has each release on the disk before anything leaves; unopened mail goes on as it came.

A release that is killed after the next hop has accepted and before the entry is gone delivers again when it is
repeated: between the two there is one transaction and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

import structlog

from relay import mime
from relay.dkim import Arrivals
from relay.errors import CannotOpen, DeliveryUnderWay, RelayError, StoreUnavailable, TryLater
from relay.forward import Handed, NextHop
from relay.levels.content import off_loop
from relay.mail import Envelope, Mail, Outcomes, Recipient
from relay.opening import Opened, Opener
from relay.policy import Content, PolicySet
from relay.store import Kept, Quarantine
from relay.store.ledger import Entry, Event, Ledger

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Released:
    """What became of a message for each recipient, and whether that was all, so that it is gone."""

    recipients: tuple[Recipient, ...]
    outcomes: Outcomes
    over: bool


@dataclass(frozen=True, slots=True)
class _Leaving:
    """A message as it will leave; `protection` is what the ledger says of it."""

    mail: Mail
    protection: str
    peer: str
    opened: Opened | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """What it works with. `max_hops` is that of incoming mail, `by` the person, for the ledger."""

    quarantine: Quarantine
    opener: Opener
    next_hop: NextHop
    ledger: Ledger
    policies: Callable[[], PolicySet]
    max_hops: int
    by: str
    dkim: Arrivals | None = None

    async def release(self, kept: Kept, to: Sequence[Recipient], *, unopened: bool = False) -> Released:
        """Hands the message on to those of its recipients; with `unopened`, sealed as it came.

        Raises CannotOpen, or whatever else stands in the way; the message is then as it was.
        """
        async with self._claimed(kept):
            leaving = await self._leaving(kept, to, unopened=unopened)
            accepted: list[str] = []
            try:
                await self._record("released", kept, leaving.mail.envelope, leaving.protection, leaving.peer)
                handed = await self.next_hop.deliver(leaving.mail)
                accepted = _accepted(leaving.mail, handed)
            finally:
                if leaving.opened is not None:
                    await self._settle(leaving.opened, accepted)
        over = await self._delivered(kept, accepted + _served(leaving.opened, to))
        return Released(leaving.mail.envelope.recipients, handed.outcomes, over)

    async def drop(self, kept: Kept) -> None:
        """Destroys the message for all who wait for it. Raises StoreUnavailable, and TryLater as `release` does."""
        async with self._claimed(kept):
            await self._record("dropped", kept, kept.envelope, "nothing", kept.peer)
            await self.quarantine.drop(kept.id)

    @asynccontextmanager
    async def _claimed(self, kept: Kept) -> AsyncIterator[None]:
        """The message is ours until its fate is noted, or until something fails. Raises TryLater."""
        if not await self._claim(kept):
            raise TryLater("it is being released at this moment, or is gone; look again in a quarter of an hour")
        try:
            yield
        except BaseException:
            with suppress(StoreUnavailable):  # then the claim ends by itself
                await self.quarantine.unclaim(kept.id)
            raise

    async def _claim(self, kept: Kept) -> bool:
        """Whether it is ours now; who is cancelled while the store is busy gives back what he gets afterwards."""
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
            who = ", ".join(accepted) or "nobody"
            raise StoreUnavailable(
                f"{who} HAS it, and a release would repeat it, as this was not noted: {error}"
            ) from error

    async def _settle(self, opened: Opened, accepted: Sequence[str]) -> None:
        """Some have the message, whatever fails now: nobody must hear that it stays."""
        has_it = {Recipient(address).mailbox for address in accepted}
        try:
            await self.opener.settle(opened, sorted(has_it), [box for box in opened.due if box not in has_it])
        except RelayError as error:  # the keys go when their time is over
            log.error("delivery_not_settled", cause=str(error), kind=type(error).__name__)

    async def _leaving(self, kept: Kept, to: Sequence[Recipient], *, unopened: bool) -> _Leaving:
        message = await self.quarantine.message(kept.id)
        mail = Mail(replace(kept.envelope, recipients=tuple(to)), message, id=kept.mail_id, origin=kept.origin)
        if kept.reason == "unprotected":  # what is kept is what would have been handed on, and its mark says so
            return _Leaving(_headers_only(mail), kept.protection or "none", kept.peer)
        if unopened:
            without_marks = await off_loop(len(message), mime.without_fields, message, mime.OUR_MARKS)
            if self.dkim:
                without_marks = await self.dkim.without_forged(without_marks)
            return _Leaving(mail.with_message(kept.trace + without_marks), "unopened", kept.peer)
        opened = await self.opener.open(
            message, kept.envelope.sender, mail.envelope.mailboxes, max_hops=self.max_hops, any_time=True
        )
        if opened is None:
            raise CannotOpen("it is not sealed for this site, as this is configured now; --unopened hands it on sealed")
        try:
            return await self._opened(mail, opened)
        except BaseException:
            await self.opener.give_up(opened)
            raise

    async def _opened(self, mail: Mail, opened: Opened) -> _Leaving:
        """The original, marked, from the sealed sender to those whom the sealed envelope names and who lack it."""
        message = mail.message
        mail = _for_named(mail, opened)
        missed = self._missed(mail.envelope, opened)
        marked = await off_loop(
            len(opened.original), mime.marked, opened.original, opened.protection, opened.peer, opened.author, missed
        )
        if self.dkim:
            marked = await self.dkim.told(marked, await self.dkim.verified(message))
        return _Leaving(_headers_only(mail.with_message(marked)), opened.protection, opened.peer, opened)

    def _missed(self, envelope: Envelope, opened: Opened) -> str:
        """What the mark adds where policy requires more: releasing is a person's decision, which this does not stop."""
        required = self.policies().require(envelope.sender, Content(opened.original))
        missed = required.missed(opened.protection, opened.peer)
        return missed.mark if missed is not None else ""

    async def _record(self, event: Event, kept: Kept, envelope: Envelope, used: str, peer: str) -> None:
        entry = Entry(
            event=event,
            message=kept.digest,
            sender=envelope.sender,
            recipients=envelope.addresses,
            policy=f"quarantine {kept.id}",
            policy_version=self.policies().version,
            peer=peer or None,
            listed=(),
            used=used,
            reason=f"{kept.reason}: {kept.cause}",
            by=self.by,
        )
        await self.ledger.record(entry)


def why_not(error: RelayError) -> str:
    """Why a message stays, for a person."""
    return f"{type(error).__name__}: {error}"


def _accepted(mail: Mail, handed: Handed) -> list[str]:
    return [
        address for address, outcome in zip(mail.envelope.addresses, handed.outcomes, strict=True) if outcome is None
    ]


def _served(opened: Opened | None, to: Sequence[Recipient]) -> list[str]:
    """Those who had it before, by the same message: nobody waits for them."""
    return [each.address for each in to if opened is not None and each.mailbox in opened.served]


def _for_named(mail: Mail, opened: Opened) -> Mail:
    """The mail to those who get it now. Raises DeliveryUnderWay where they get it already, CannotOpen for nobody."""
    if opened.busy and not opened.due:
        raise DeliveryUnderWay("it is being delivered at this moment; look again in a quarter of an hour")
    if not opened.due:
        named = "everybody whom it names has it" if opened.served else "its sealed envelope names other recipients"
        raise CannotOpen(f"{named}; `quarantine drop` destroys it")
    return opened.to_the_due(mail)


def _headers_only(mail: Mail) -> Mail:
    """RET=HDRS (RFC 3461, 4.3): a bounce of what was readable here must not quote its content."""
    return replace(mail, envelope=replace(mail.envelope, ret="HDRS"))
