"""Makes of a sealed message what is handed on: opens it, checks what policy requires of it, and marks it.
Standard: policies/README.md (`require`); RFC 8601 4 and 5 (Authentication-Results), where [dkim] is set.

Mail by SMTP and milter (incoming.py), in mailboxes (entry/imap) and out of quarantine all comes through here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from relay.counting import metrics
from relay.counting.board import Board
from relay.formats import mime
from relay.journey.opening import MailOpener, Opened
from relay.policy.content import MessageFacts
from relay.policy.decide import PolicySet
from relay.policy.require import Missed, author
from relay.runtime.aio import off_loop, off_loop_in_turn

if TYPE_CHECKING:
    from relay.dkim import Arrivals, AuthResult

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Original:
    """What was `opened`, and the `message` to hand on, marked; b"" where nobody gets it now.

    `missed` is what policy requires and it lacks, None for nothing; its mark says so already.
    """

    message: bytes = field(repr=False)
    opened: Opened
    missed: Missed | None


@dataclass(frozen=True, slots=True)
class Originals:
    """What it works with; one value for the life of the relay. `dkim` gives what verifies, asked once for each mail."""

    opener: MailOpener
    policies: Callable[[], PolicySet]
    dkim: Callable[[], Arrivals | None] | None = None
    board: Board = field(default_factory=Board, repr=False)

    async def open(
        self,
        message: bytes,
        sender: str,
        mailboxes: Sequence[str],
        *,
        max_hops: int = sys.maxsize,
        patient: bool = True,
        any_time: bool = False,
        mailbox: bool = False,
        mark: str = "",
    ) -> Original | None:
        """The original for those who are `due`, or None where `message` is not sealed for us; arguments as for `open`.

        The caller then calls `settle` or `give_up` of the opener. With `mailbox` it goes into one that nobody else
        writes to. There `busy` counts as due, and the outer signatures are those that its server has checked. `mark`
        is added to X-QuMail-Protection. Raises KeyUnavailable, StoreUnavailable or CannotOpen, and then claims nobody.
        """
        layers, dkim = self.opener.layers(), self.dkim() if self.dkim is not None else None
        outermost = await layers.recognise(message, sender)
        if outermost is None:
            return None
        # Before anything is claimed: a DNS server that is slow would make a retry by another relay wait.
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
            # From the sealed sender: what MAIL FROM says can be forged, and would choose the policy.
            content = MessageFacts(opened.original)
            missed = await self.missed(opened.envelope.sender, content, opened.protection, opened.peer)
            marked = await off_loop(
                mime.work(opened.original), _marked, opened, content, (missed.mark if missed else "") + mark
            )
            if dkim:
                marked = await (dkim.without_forged(marked) if mailbox else dkim.with_results(marked, results))
        except BaseException:
            await self.opener.give_up(opened)
            raise
        return Original(marked, opened, missed)

    async def unopened(self, message: bytes) -> bytes:
        """A message as it came, without marks and results that only we may write: it must not claim to be opened."""
        message = await off_loop(mime.work(message), mime.without_fields, message, mime.OUR_MARKS)
        dkim = self.dkim() if self.dkim is not None else None
        return await dkim.without_forged(message) if dkim else message

    async def missed(self, sender: str, content: MessageFacts, protection: str, peer: str) -> Missed | None:
        """What a mail lacks that came with this protection from this peer ("", "" for unsealed); None for nothing."""
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
