"""Turns a sealed message into the one to deliver: opens it, checks what policy requires, and marks it.
Standard: policies/README.md (`require`); RFC 8601 4 and 5 (Authentication-Results), if [dkim] is set.

Used for mail by SMTP and milter (incoming.py), in mailboxes (entry/imap), and released from quarantine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from relay.counting import metrics
from relay.counting.board import Board
from relay.formats import mime
from relay.journey.marks import SiteMarks
from relay.journey.opening import MailOpener, Opened
from relay.mail import Mail, domain_of
from relay.policy.content import MessageFacts
from relay.policy.decide import PolicySet
from relay.policy.require import Missed, author
from relay.runtime.aio import off_loop, off_loop_in_turn
from relay.store.secret import SiteSecret

if TYPE_CHECKING:
    from relay.dkim import Arrivals, AuthResult
    from relay.smime.opening import SMIMEOpener
    from relay.smime.reading import SMIMEReading

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Original:
    """The `opened` mail, and the marked `message` to deliver; b"" if nobody gets it now.

    `missed` is the policy requirement that it does not meet, or None; its mark already includes that.
    """

    message: bytes = field(repr=False)
    opened: Opened
    missed: Missed | None


@dataclass(frozen=True, slots=True)
class Originals:
    """The parts used; one value for the relay's lifetime. `dkim` returns the verifier, once for each mail.

    `smime` reads mail of other programs, None without [smime].
    """

    opener: MailOpener
    policies: Callable[[], PolicySet]
    dkim: Callable[[], Arrivals | None] | None = None
    board: Board = field(default_factory=Board, repr=False)
    marks: SiteMarks = field(default_factory=lambda: SiteMarks(SiteSecret(os.urandom(32))), repr=False)
    smime: SMIMEOpener | None = None

    async def open(
        self,
        message: bytes,
        mailboxes: Sequence[str],
        *,
        max_hops: int = sys.maxsize,
        patient: bool = True,
        any_time: bool = False,
        mailbox: bool = False,
        mark: str = "",
    ) -> Original | None:
        """The original for those `due`, or None if `message` is not sealed for us; arguments as for MailOpener.open.

        The caller then calls `settle` or `give_up` of the opener. With `mailbox` it is for a mailbox with only one
        writer: `busy` counts as due, and its server has checked the outer signatures. Its mark gets no proof here.
        `mark` is added to X-QuMail-Protection. Raises KeyUnavailable, StoreUnavailable or CannotOpen, without a claim.
        """
        layers, dkim = self.opener.layers(), self.dkim() if self.dkim is not None else None
        outermost = await layers.recognise(message, mailboxes)
        if outermost is None:
            return None
        # Before anything is claimed: with a slow DNS server, a retry at another relay would have to wait.
        results: Sequence[AuthResult] = ()
        if dkim and not mailbox:
            with self.board.spread(metrics.STEP_SECONDS, "incoming", "verify").timed():
                results = await dkim.verified(message)
        opened = await self.opener.open_recognised(
            layers, outermost, len(message), mailboxes, max_hops=max_hops, patient=patient, any_time=any_time
        )
        if not opened.due and not (mailbox and opened.busy):
            return Original(b"", opened, None)
        try:
            # By the sealed sender: MAIL FROM can be forged, and would choose the policy.
            content = MessageFacts(opened.original)
            missed = await self.missed(opened.envelope.sender, content, opened.protection, opened.peer)
            work, more = mime.work(opened.original), (missed.mark if missed else "") + mark
            marked = await off_loop(work, _marked, opened, content, more)
            if not mailbox:
                marked = await off_loop(work, self.marks.proven, marked)
            if dkim:
                marked = await (dkim.without_forged(marked) if mailbox else dkim.with_results(marked, results))
        except BaseException:
            await self.opener.give_up(opened)
            raise
        return Original(marked, opened, missed)

    async def read_smime(self, mail: Mail) -> SMIMEReading | None:
        """S/MIME for the recipients in this site's domains, opened and verified; None if it goes on as it came.

        Raises CannotOpen for one that is for us, and goes on as it came too.
        """
        if self.smime is None:
            return None
        domains = self.opener.layers().config.site.domains
        ours = [mailbox for mailbox in mail.envelope.mailboxes if domain_of(mailbox) in domains]
        return await self.smime.read(mail.message, ours) if ours else None

    async def unopened(self, message: bytes) -> bytes:
        """The message without marks and results that only we may add: it must not claim to be opened."""
        message = await off_loop(mime.work(message), mime.without_marks, message)
        dkim = self.dkim() if self.dkim is not None else None
        return await dkim.without_forged(message) if dkim else message

    async def missed(self, sender: str, content: MessageFacts, protection: str, peer: str) -> Missed | None:
        """The requirement not met by a mail with this protection from this peer ("", "" if unsealed), or None."""
        required = await off_loop_in_turn(mime.work(content.message), self.policies().require, sender, content)
        missed = required.missed(protection, peer)
        if missed is not None:
            log.warning(
                "arrived_unprotected", cause=missed.cause, action=missed.otherwise, policy_version=required.version
            )
        return missed


def _marked(opened: Opened, content: MessageFacts, more: str) -> bytes:
    whose = author(content, opened.config.peers[opened.peer].domains)
    return mime.marked(opened.original, opened.protection, opened.peer, whose, more)
