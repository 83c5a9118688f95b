"""Decides about arriving mail that cannot be handed on: hold it, refuse it, or put it in quarantine.
Standard: what is put aside is on the disk when these methods return, and only then is 250 said for it.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass

import structlog

from relay import mime
from relay.aio import off_loop
from relay.config import Config
from relay.errors import BadStructure, CannotOpen, KeyNotFound, PolicyRefuses, QuarantineFull
from relay.mail import Mail, domain_of
from relay.policy.names import printable
from relay.quarantine import Reason, reason_of
from relay.quarantine.metrics import QuarantineMetrics
from relay.quarantine.notice import Notices
from relay.store import Arrival, Room, Store

log = structlog.get_logger(__name__)

SHARES = 2
"""One party (a peer, or all who are no peer together) may take one part of so many, so that nobody takes all."""
MAX_CAUSE = 1000
TOO_LATE: frozenset[Reason] = frozenset({"expired", "destroyed", "outside-window"})
"""What was sealed as it should be, and came when nobody could open it any more."""


@dataclass(frozen=True, slots=True)
class Triage:
    """What it works with; one value for the life of the relay. Without `notices` recipients are told nothing."""

    config: Config
    store: Store
    metrics: QuarantineMetrics
    notices: Notices | None = None

    async def cannot_open(self, mail: Mail, error: CannotOpen | KeyNotFound) -> None:
        """Returns when the mail, as it came, is in quarantine for its recipients.

        Raises `error` where the mail is to be held or refused, and QuarantineFull or StoreUnavailable. Nothing is
        refused after its keys were looked at: the answer would tell what is right about it.
        """
        if self.config.quarantine.action == "refuse" and not (isinstance(error, CannotOpen) and error.silent):
            raise error
        key = await off_loop(len(mail.message), identity, mail)
        if isinstance(error, KeyNotFound) and await self._may_still_come(key):
            self.metrics.lag.inc()
            raise error
        arrival = Arrival(mail, reason_of(error), _cause(error), self._party(mail), mail.message)
        await self._put(key, arrival, reason_of(error))

    async def unprotected(self, mail: Mail, stored: bytes, protection: str, peer: str, cause: str) -> None:
        """Returns when `stored`, the mail as it would have been handed on, is in quarantine for its recipients.

        `protection` and `peer` are how it came, "" and "" for unsealed. Raises PolicyRefuses where unsealed mail is
        not kept, and QuarantineFull or StoreUnavailable.
        """
        if self.config.quarantine.action == "refuse" and not protection:
            raise PolicyRefuses(cause)
        key = await off_loop(len(mail.message), identity, mail)
        if protection:  # it can be read: nobody may get into it by sending the sealed message to somebody else
            key = hashlib.sha256(b"opened\0" + key).digest()
        arrival = Arrival(mail, "unprotected", _cause(cause), self._party(mail), stored, protection, peer)
        await self._put(key, arrival, "unprotected")

    async def look(self) -> None:
        """Brings the gauges up to date, and forgets mail that waited for its key long ago."""
        self.metrics.show(await self.store.quarantine.totals())
        await self.store.first_seen.expire()

    async def _may_still_come(self, key: bytes) -> bool:
        """Whether the key of this mail may only be late; of one in quarantine that was decided before."""
        if await self.store.quarantine.has(key):
            return False
        return await self.store.first_seen.waits_for(key) < self.config.quarantine.hold_for

    async def _put(self, key: bytes, arrival: Arrival, reason: Reason) -> None:
        total = self.config.quarantine.max_size
        try:
            put = await self.store.quarantine.put(key, arrival, Room(total, total // SHARES))
        except QuarantineFull as error:
            self.metrics.full.inc()
            log.error("quarantine_full", reason=reason, cause=f"{error}; see `qumail-relay quarantine list`")
            raise
        self.metrics.put.labels(reason, "no" if put.new else "yes").inc()
        # Its sender has heard 250, and a recipient has not got it: nobody else will notice.
        report = log.error if reason in TOO_LATE and put.recipients else log.warning
        report(
            "put_in_quarantine",
            id=put.id,
            reason=reason,
            cause=arrival.cause,
            again=not put.new,
            recipients=len(put.recipients),
            octets=len(arrival.stored),
        )
        # Who redirects a mail to somebody must not reach them with a notice of ours.
        if self.notices is not None and arrival.party and put.recipients and reason != "redirected":
            await self.notices.send(arrival.mail, put.id, reason, put.recipients)

    def _party(self, mail: Mail) -> str:
        """The peer whose domain the sender has, or "" for everybody else."""
        found = self.config.peer_by_domain(domain_of(mail.envelope.sender))
        return found[0] if found is not None else ""


def identity(mail: Mail) -> bytes:
    """32 octets that all copies of a mail have: of a sealed one its CMS, whoever sends it, whatever its header is.

    A sealed mail opens or not by its CMS alone, all of it, so no copy can take the place of a better one.
    """
    kind, content = mail.envelope.sender.encode("utf-8", "surrogateescape"), mail.message
    if mime.is_sealed(mail.message):
        with suppress(BadStructure):
            kind, content = b"\0sealed", mime.sealed_content(mail.message)
    digest = hashlib.sha256(kind + b"\0")
    digest.update(content)
    return digest.digest()


def _cause(cause: object) -> str:
    """Hostile mail may have written a part of this."""
    return printable(str(cause))[:MAX_CAUSE]
