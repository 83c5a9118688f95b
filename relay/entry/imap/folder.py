"""The recipe for one folder: find sealed messages, open them, append the originals, then move the sealed ones away.
Standard: RFC 3501; an original confirmed by the server is identified by its mark, so each step may be repeated.

A kill before APPEND has no effect. After it, the next run finds the mark of the sealed message in the folder and
appends no second original. It also records in the store that the mail was delivered; this record outlives the mark. Two
watchers at once may both append. Each then keeps the first original, by UID, and removes later duplicates. Only then is
the sealed message moved away.

A message with a forged mark is handled in the same way: a copy without it is appended, then the message is removed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from relay.config import IMAPSettings
from relay.entry.budget import Budget, Share
from relay.entry.imap.marks import FIELDS, copy_of, mark_in
from relay.entry.imap.opening import MailboxOpener, Replacement, age_of
from relay.entry.imap.responses import Fetched
from relay.entry.imap.session import MAX_FIELDS_OCTETS, MailboxRefused, Selected, Session
from relay.errors import (
    ConfigError,
    KeyLost,
    KeyNotFound,
    MailboxUnavailable,
    MessageTooBig,
    Refuse,
    RelayError,
    TryLater,
)
from relay.formats import mime
from relay.journey.opening import Opened
from relay.runtime.aio import Turns, off_loop

log = structlog.get_logger(__name__)

UNOPENED, OPENED, LOST = "$QuMailUnopened", "$QuMailOpened", "$QuMailKeyLost"
OURS = frozenset({UNOPENED.lower(), OPENED.lower(), LOST.lower()})
"""Our flags: IMAP keywords (RFC 3501, 2.3.2), which mail programs may show."""
OVERVIEW_MESSAGES = 500
BATCH_MESSAGES = 64
BATCH_OCTETS = 8 * 2**20
"""Maximum size of messages fetched and opened together, in octets; a larger one is fetched alone."""
MEMORY_FACTOR = 3
"""Memory of a message while it is opened, as a multiple of its size."""
RETRY_S, RETRY_LONGEST_S = 30.0, 3600.0
"""First and longest retry interval of a message that may open later, in seconds; doubled each time."""
RETRY_REFUSED_S = 86_400.0
"""Retry interval of a message that cannot be opened, in seconds: an administrator may have fixed the cause."""
LINGER_S = 0.5
"""Maximum wait of other messages for one whose keys are late, in seconds."""
MOST_BREAKS = 3
"""Maximum number of broken connections over a message before it waits like one that cannot be opened."""
LOOK_BACK = timedelta(days=30)
"""Maximum age of messages checked for marks at the start of the watch; all later ones are checked."""

Progress = Callable[[int, int], None]
"""Progress callback: the number of messages opened so far, and of those that wait."""


@dataclass(slots=True)
class SealedMessage:
    """A sealed message in the folder: when it was seen, when its next attempt is due (loop time), number of attempts.

    A `doubtful` one may have a forged mark.
    """

    size: int
    flagged: bool
    doubtful: bool
    since: float
    due: float = 0.0
    tries: int = 0


@dataclass(slots=True)
class OpeningMessage:
    """A message being opened, or being replaced if its mark is `forged`, and the memory that it holds."""

    share: Share
    forged: bool = False
    message: Fetched | None = None
    marks: tuple[str, ...] = ()
    opening: asyncio.Task[Replacement | None] | None = None
    opened: Opened | None = None
    mail: str = ""


class Folder:
    """One folder of an account, over any number of successive connections."""

    def __init__(
        self,
        account: IMAPSettings,
        name: str,
        opener: MailboxOpener,
        budget: Budget,
        hold_for: float,
        progress: Progress,
    ) -> None:
        """A key still unknown to all KMEs `hold_for` seconds after its message arrived is lost."""
        self.account = account
        self.name = name
        self.opened = 0
        self.lost: set[int] = set()
        self._opener = opener
        self._marks = opener.marks
        self._budget = budget
        self._hold_for = hold_for
        self._progress = progress
        self._validity = 0
        self._seen = 0
        self._waiting: dict[int, SealedMessage] = {}
        self._originals: dict[str, set[int]] = {}
        self._written: set[str] = set()
        self._taken: dict[int, OpeningMessage] = {}
        self._in_transfer: Sequence[int] = ()
        self._breaks: Counter[int] = Counter()

    @property
    def unopened(self) -> int:
        """Number of sealed messages that wait for their turn or for a retry."""
        return len(self._waiting)

    def pause(self) -> float:
        """Seconds until the next retry is due, or until the next regular scan."""
        now = asyncio.get_running_loop().time()
        return min([self.account.poll, *(max(0.0, each.due - now) for each in self._waiting.values())])

    async def begin(self, session: Session) -> None:
        """Selects the folder on a new connection. Raises MailboxUnavailable, and ConfigError if settings conflict."""
        self._blame()
        self._session = session
        if session.receives_sealed(self.name):
            raise ConfigError(
                f"sealed_folder is {self.name!r}, which is one of folders; sealed messages must leave those"
            )
        self._selected = await session.select(self.name)
        if self._selected.validity != self._validity:
            await self._begin_anew(self._selected)

    async def work(self) -> None:
        """Opens all messages that can be opened now. Raises MailboxUnavailable; the next call resumes there."""
        taken: list[int] = []
        try:
            while True:
                await self._scan()
                await self._put_away(taken)
                taken = await self._take()
                if not self._taken:
                    break
                taken += await self._append_opened()
        finally:
            await self._release_all()

    # Finding.

    async def _begin_anew(self, selected: Selected) -> None:
        """Starts over: the folder is new to us, or its UIDVALIDITY has changed."""
        uids = await self._session.search("HEADER", "Content-Type", '"pkcs7-mime"')
        with suppress(MailboxRefused):
            since = f"{datetime.now(UTC) - LOOK_BACK:%d-%b-%Y}"
            uids += await self._session.search("SINCE", since, "HEADER", "X-QuMail-Protection", '""')
        self._waiting.clear()
        self._originals.clear()
        self._breaks.clear()
        self.lost.clear()
        # Messages arrive between the searches: the second may find one, and the first have missed an earlier one.
        self._seen = min([*uids, selected.next_uid]) - 1
        self._validity = selected.validity

    async def _scan(self) -> None:
        """Scans all messages not scanned yet."""
        self._session.protocol.news.clear()
        uids = [uid for uid in await self._session.search("UID", f"{self._seen + 1}:*") if uid > self._seen]
        for start in range(0, len(uids), OVERVIEW_MESSAGES):
            portion = uids[start : start + OVERVIEW_MESSAGES]
            turns = Turns()
            for each in await self._session.overview(portion[0], portion[-1], FIELDS):
                self._look_at(each)
                await turns.give()
            self._seen = portion[-1]

    def _look_at(self, message: Fetched) -> None:
        flags = {flag.lower() for flag in message.flags}
        forged = self._marks.forged(message.content)
        if mark := mark_in(message.content):
            self._originals.setdefault(mark, set()).add(message.uid)
            if forged and mark in self._written:
                log.error("imap_mark_changed", folder=self.name, uid=message.uid, cause="the server writes fields anew")
                forged = False
            self._written.discard(mark)
        if "\\deleted" in flags:
            return
        doubtful = forged or len(message.content) >= MAX_FIELDS_OCTETS
        sealed = mime.is_sealed(message.content) and OPENED.lower() not in flags
        if sealed and not doubtful and LOST.lower() in flags:
            self.lost.add(message.uid)
        elif doubtful or sealed:
            now = asyncio.get_running_loop().time()
            self._waiting[message.uid] = SealedMessage(message.size, UNOPENED.lower() in flags, doubtful, now)

    # Opening.

    async def _take(self) -> list[int]:
        """Fetches due messages and begins to open them; returns those whose originals already exist."""
        sizes = await self._batch()
        self._in_transfer = tuple(sizes)
        messages = {each.uid: each for each in await self._session.messages(sizes)} if sizes else {}
        self._in_transfer = ()
        finished: list[int] = []
        for uid in sizes:
            taken = self._taken[uid]
            taken.message = messages.get(uid)
            if taken.message is None:  # removed meanwhile
                self._over(uid)
                continue
            content = taken.message.content
            taken.marks = await off_loop(len(content), self._marks.of, content)
            clean = content
            if self._waiting[uid].doubtful:
                clean = await off_loop(mime.work(content), self._marks.clean, content)
            taken.forged = clean != content
            if await self._present(taken.marks):
                if not taken.forged:
                    await self._opener.settle_late(content)
                finished.append(uid)
            else:
                mark = taken.marks[0]
                work = self._copy(clean, mark) if taken.forged else self._opener.open(taken.message, mark)
                taken.opening = asyncio.create_task(work)
        return finished

    async def _copy(self, clean: bytes, mark: str) -> Replacement | None:
        """The replacement of a message with a forged mark."""
        return Replacement(await off_loop(mime.work(clean), self._marks.proven, copy_of(mark, clean)), mark, None)

    async def _batch(self) -> dict[int, int]:
        """UIDs and sizes of the messages to fetch next, with their memory reserved."""
        sizes: dict[int, int] = {}
        for uid, waiting in self._turns():
            alone = self._breaks[uid] > 0
            if len(self._taken) >= BATCH_MESSAGES:
                break
            if sizes and (alone or sum(sizes.values()) + waiting.size > BATCH_OCTETS):
                break
            if waiting.size > self.account.max_message_size:
                await self._leave(uid, MessageTooBig(f"{waiting.size} octets"))
                continue
            share = Share(self._budget)
            try:
                await share.hold(MEMORY_FACTOR * waiting.size)
            except TryLater as error:
                self._postpone(uid, error)
                break
            self._taken[uid] = OpeningMessage(share)
            sizes[uid] = waiting.size
            if alone:
                break
        return sizes

    def _turns(self) -> list[tuple[int, SealedMessage]]:
        """Messages that are due: new ones first, then retries."""
        now = asyncio.get_running_loop().time()
        due = [(uid, each) for uid, each in self._waiting.items() if each.due <= now and uid not in self._taken]
        return sorted(due, key=lambda turn: (turn[1].flagged or turn[1].tries > 0, self._breaks[turn[0]], turn[0]))

    async def _append_opened(self) -> list[int]:
        """Appends the originals opened so far; returns the UIDs of their sealed messages."""
        openings = [taken.opening for taken in self._taken.values() if taken.opening is not None]
        if openings:
            await asyncio.wait(openings, timeout=LINGER_S)
        return [
            uid
            for uid, taken in list(self._taken.items())
            if taken.opening is not None and taken.opening.done() and await self._append(uid, taken, taken.opening)
        ]

    async def _append(self, uid: int, taken: OpeningMessage, opening: asyncio.Task[Replacement | None]) -> bool:
        """Appends the original; returns whether it is in the folder. If not, the sealed message stays as it is."""
        try:
            original = opening.result()
        except KeyNotFound as error:
            if self._is_lost(uid, taken):
                await self._lose(uid, KeyLost(str(error)))
            else:
                await self._leave(uid, error)
            return False
        except KeyLost as error:
            await self._lose(uid, error)
            return False
        except RelayError as error:
            await self._leave(uid, error)
            return False
        except Exception as error:  # in any case the message stays
            log.error("imap_opening_failed", folder=self.name, uid=uid, exc_info=error)
            await self._leave(uid, TryLater(type(error).__name__))
            return False
        if original is None or taken.message is None:
            self._over(uid)
            return False
        flags = [flag for flag in taken.message.flags if flag.lower() not in OURS and self._selected.keeps(flag)]
        self._in_transfer = (uid,)
        try:
            self._written.add(original.mark)
            await self._session.append(self.name, original.message, flags, taken.message.date)
        except MailboxRefused as error:
            self._in_transfer = ()
            await self._opener.give_up(original.opened)
            await self._leave(uid, error)
            return False
        self._in_transfer = ()
        taken.opening, taken.opened = None, original.opened
        await self._opener.settle(original.opened)
        self._opener.record(taken.message.content, original)
        taken.mail = original.mail
        return True

    # Moving the sealed message away.

    async def _put_away(self, uids: list[int]) -> None:
        """Moves, flags or deletes the sealed messages, as configured, once their originals are in the folder."""
        for uid in uids:
            await self._remove_duplicates(uid)
        forged = [uid for uid in uids if self._taken[uid].forged]
        await self._move_on(forged, "delete")
        await self._move_on([uid for uid in uids if uid not in forged], self.account.after)

    async def _move_on(self, uids: list[int], outcome: str) -> None:
        if not uids:
            return
        try:
            if outcome == "move":
                await self._session.move(uids, self.account.sealed_folder)
            elif outcome == "flag":
                await self._session.add_flag(uids, OPENED)
            else:
                await self._session.remove(uids)
        except MailboxRefused as error:
            log.error("imap_not_put_away", folder=self.name, messages=len(uids), cause=str(error))
            for uid in uids:
                self._postpone(uid, error)
                self._release(uid)
            return
        for uid in uids:
            await self._done(uid)

    async def _remove_duplicates(self, uid: int) -> None:
        """Removes all originals but the first, unless nothing may be deleted."""
        present = await self._present(self._taken[uid].marks, at_least=2)
        if not present[1:]:
            return
        try:
            await self._session.remove(present[1:])
        except MailboxRefused as error:
            log.error("imap_double_not_removed", folder=self.name, uid=uid, cause=str(error))
        else:
            log.warning("imap_double_removed", folder=self.name, uid=uid, cause="another watcher was here as well")

    async def _done(self, uid: int) -> None:
        opened, forged, mail = self._taken[uid].opened, self._taken[uid].forged, self._taken[uid].mail
        self._over(uid)
        if forged:
            log.warning("imap_forged_mark_removed", folder=self.name, uid=uid)
            return
        self.opened += 1
        self._progress(self.opened, len(self._waiting))
        if opened is None:
            return
        log.info(
            "imap_opened",
            folder=self.name,
            uid=uid,
            mail=mail,
            protection=opened.protection,
            peer=opened.peer,
            sealed=opened.sealed,
            key_IDs=[reference.key_ID for reference in opened.keys],
            octets=len(opened.original),
        )

    async def _present(self, marks: Iterable[str], at_least: int = 1) -> list[int]:
        """The UIDs of the originals in the folder with one of these marks, ascending.

        If fewer than `at_least` were ever seen, returns none without a query.
        """
        uids = {uid for mark in marks for uid in self._originals.get(mark, ())}
        return sorted(await self._session.exist(uids)) if len(uids) >= at_least else []

    async def _leave(self, uid: int, error: RelayError) -> None:
        """Leaves the message as it is, and flags it once."""
        waiting = self._waiting[uid]
        self._release(uid)
        self._postpone(uid, error)
        if not waiting.flagged and self._selected.keeps(UNOPENED):
            with suppress(MailboxRefused):
                await self._session.add_flag([uid], UNOPENED)
        waiting.flagged = True

    def _is_lost(self, uid: int, taken: OpeningMessage) -> bool:
        """Whether an unknown key is lost and no longer just late; never decided at the first attempt."""
        waiting, hold_for = self._waiting[uid], self._hold_for
        age = age_of(taken.message.date) if taken.message is not None else None
        waited = asyncio.get_running_loop().time() - waiting.since
        return waiting.flagged and (waited >= hold_for or (age is not None and age.total_seconds() >= hold_for))

    async def _lose(self, uid: int, error: KeyLost) -> None:
        """Leaves the message as it is, and flags it; it is retried only if the flag is removed."""
        self._over(uid)
        self.lost.add(uid)
        log.error("imap_key_lost", folder=self.name, uid=uid, kind=type(error).__name__, cause=str(error))
        if self._selected.keeps(LOST):
            with suppress(MailboxRefused):
                await self._session.add_flag([uid], LOST)

    def _postpone(self, uid: int, error: RelayError) -> None:
        """Schedules the next attempt."""
        waiting = self._waiting[uid]
        pause = min(RETRY_S * 2 ** min(waiting.tries, 30), RETRY_LONGEST_S)
        pause = RETRY_REFUSED_S if isinstance(error, Refuse) else pause
        waiting.tries += 1
        waiting.due = asyncio.get_running_loop().time() + pause
        log.warning(
            "imap_not_opened",
            folder=self.name,
            uid=uid,
            kind=type(error).__name__,
            cause=str(error),
            again_in_s=pause,
        )

    def _blame(self) -> None:
        """The connection broke over these messages: they are tried alone, and after MOST_BREAKS later."""
        for uid in self._in_transfer:
            self._breaks[uid] += 1
            if self._breaks[uid] % MOST_BREAKS == 0 and uid in self._waiting:
                self._postpone(uid, MailboxUnavailable("the connection breaks over this message"))
        self._in_transfer = ()

    def _over(self, uid: int) -> None:
        """Drops a finished message."""
        self._release(uid)
        del self._waiting[uid]
        del self._breaks[uid]
        if not self._waiting:
            self._originals.clear()

    def _release(self, uid: int) -> None:
        if taken := self._taken.pop(uid, None):
            taken.share.reduce()

    async def _release_all(self) -> None:
        """Gives up all messages being opened; the store keeps keys that arrive for them."""
        openings = [taken.opening for taken in self._taken.values() if taken.opening is not None]
        for opening in openings:
            opening.cancel()
        for original in await asyncio.gather(*openings, return_exceptions=True):
            if isinstance(original, Replacement):
                await self._opener.give_up(original.opened)
        for uid in list(self._taken):
            self._release(uid)
