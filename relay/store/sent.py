"""What next hops have accepted in the last moments: written in the step that reads their answer, for the retry.
Standard: RFC 1047: who is killed between a next hop's 250 and the record of it sends a mail twice. No await is between.

The store would know as well, but it is written with the disk's and the database's leave, some milliseconds later, and
not at all for mail whose client hears at once that all is well. Here a record costs one write. It is of use only to a
relay that starts after a kill, so the file is thrown away when its last client must have heard.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic

import structlog

from relay.errors import StoreUnavailable
from relay.store.database import batches
from relay.store.delivery_records import DeliveryRecords
from relay.store.secret import SiteSecret
from relay.store.spool import Spool, spool_contents, take_over

log = structlog.get_logger(__name__)

KEPT_S = 30.0
"""Seconds after which a client has heard its answer, or has a retry that the store knows of."""


class SentRecords:
    """The records of this process."""

    def __init__(
        self,
        directory: Path,
        secret: SiteSecret,
        settled: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`settled` says whether the store knows all that it was told; until then nothing is thrown away here.

        `clock` gives seconds that never go back, the same for all processes of this machine.
        """
        self._directory = directory
        self._secret = secret
        self._settled = settled
        self._clock = clock
        self._began = clock()
        self._now = Spool(directory, secret)
        self._before = Spool(directory, secret)
        self._failed = False

    def ready(self) -> None:
        """Takes room for the next records. To be called before a mail leaves. Raises StoreUnavailable."""
        self.tidy()
        self._now.ready()

    def note(self, mail: bytes, recipients: Sequence[bytes], opened: bool = False) -> None:
        """These have the mail, by the names of mail_identity.py; `opened`: its name is that of its sealed envelope.

        Never raises; there is no await in here.
        """
        if not recipients:
            return
        try:
            names = [each.hex() for each in recipients]
            self._now.append(json.dumps([self._clock(), mail.hex(), names, opened]).encode())
        except StoreUnavailable as error:  # the mail has left, whatever fails now
            if not self._failed:
                log.error("sent_not_noted", cause=str(error), meaning="a killed relay may send mail twice")
            self._failed = True
        else:
            self._failed = False

    def tidy(self) -> None:
        """Throws away what is old. To be called now and then: an old record would swallow the same octets sent anew."""
        now = self._clock()
        if now - self._began <= KEPT_S or not self._settled():
            return
        before, fresh = Spool(self._directory, self._secret), self._now
        if self._now.written:
            before, fresh = self._now, Spool(self._directory, self._secret)
            try:
                fresh.ready()
            except StoreUnavailable:  # mail that is on its way has been promised room, and this one has it
                return
        self._before.discard()
        self._began, self._before, self._now = now, before, fresh

    def close(self) -> None:
        """All clients have heard, and the store is closed: nothing needs to be known here, unless that could not."""
        for spool in (self._before, self._now):
            if self._settled():
                spool.discard()
            else:
                spool.close()


def sent_of_late(directory: Path, secret: SiteSecret) -> frozenset[str]:
    """The names, in hexadecimal, of all recipients of whom that stands there. Blocks; raises OSError."""
    found: set[str] = set()
    for file in spool_contents(directory, secret):
        for record in file.records:
            _, _, names, _ = json.loads(record)
            found.update(names)
    return frozenset(found)


async def take_over_sent(directory: Path, secret: SiteSecret, deliveries: DeliveryRecords) -> int:
    """What a killed process had sent goes into the store; returns how many mails. Raises StoreUnavailable."""

    async def put(found: Sequence[bytes]) -> int:
        records = [json.loads(record) for record in found]
        last = max((at for at, *_ in records), default=0.0)
        recent = [each for each in records if each[0] > last - KEPT_S]
        for together in batches(recent):
            remembered = (
                deliveries.remember(bytes.fromhex(mail), [bytes.fromhex(each) for each in names], opened=opened)
                for _, mail, names, opened in together
            )
            await asyncio.gather(*remembered)
        return len(recent)

    return await take_over(directory, secret, put, "sent_not_read")
