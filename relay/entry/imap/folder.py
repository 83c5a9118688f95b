"""The recipe for one folder: find what is sealed, open it, append the original, and only then put the sealed away.
Standard: RFC 3501; an original that the server has confirmed is known again by its mark, so any step may be repeated.

Killed before APPEND, nothing has happened. After it, the next run finds the mark of the sealed message in the folder
and appends no second original. It also notes in the store that the mail has come, and this note outlives the mark.
Two watchers at once may both append. Each then keeps the first original, by UID, and removes later duplicates. Only
then is the sealed message put away.

A message with a mark that we did not write goes the same way: a copy without it is appended, then it is removed.
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
"""Flags that are IMAP keywords (RFC 3501, 2.3.2), which servers and mail programs show to the user."""
OVERVIEW_MESSAGES = 500
BATCH_MESSAGES = 64
BATCH_OCTETS = 8 * 2**20
"""Maximum size of messages fetched and opened together, in octets; a larger one goes alone."""
MEMORY_FACTOR = 3
"""Memory a message takes while it is opened, as a multiple of its size."""
RETRY_S, RETRY_LONGEST_S = 30.0, 3600.0
"""First and longest retry interval of a message that may open later, in seconds; doubled each time."""
RETRY_REFUSED_S = 86_400.0
"""Retry interval of a message for which waiting does not help, in seconds: a person may have fixed the cause."""
LINGER_S = 0.5
"""Maximum wait of others for a message whose keys do not come, in seconds."""
MOST_BREAKS = 3
"""Maximum number of broken connections over a message before it has to wait like one that cannot be opened."""
LOOK_BACK = timedelta(days=30)
"""Age, at the start of the watch, up to which messages are checked for marks; later ones all are."""

Progress = Callable[[int, int], None]
"""Progress callback: the number of messages opened so far, and of those that wait."""


@dataclass(slots=True)
class SealedMessage:
    """A sealed message in the folder: when we saw it and its next attempt is due (in the loop's time), how many there
    were.

    One that is `doubtful` has, or may have, a mark that somebody else wrote.
    """

    size: int
    flagged: bool
    doubtful: bool
    since: float
    due: float = 0.0
    tries: int = 0


@dataclass(slots=True)
class MessageInHand:
    """A message that is being opened, or `forged` and being replaced, and the memory that it holds."""

    share: Share
    forged: bool = False
    message: Fetched | None = None
    marks: tuple[str, ...] = ()
    opening: asyncio.Task[Replacement | None] | None = None
    opened: Opened | None = None
    mail: str = ""


class Folder:
    """One folder of an account, over any number of connections one after the other."""

    def __init__(
        self,
        account: IMAPSettings,
        name: str,
        opener: MailboxOpener,
        budget: Budget,
        hold_for: float,
        progress: Progress,
    ) -> None:
        """A key that no KME knows `hold_for` seconds after its message came is lost."""
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
        self._taken: dict[int, MessageInHand] = {}
        self._in_hand: Sequence[int] = ()
        self._breaks: Counter[int] = Counter()

    @property
    def unopened(self) -> int:
        """How many sealed messages are known and wait for their turn, or for another attempt."""
        return len(self._waiting)

    def pause(self) -> float:
        """Seconds until the next attempt of a message is due, at most until the folder is looked at anyway."""
        now = asyncio.get_running_loop().time()
        return min([self.account.poll, *(max(0.0, each.due - now) for each in self._waiting.values())])

    async def begin(self, session: Session) -> None:
        """Selects the folder on a new connection. Raises MailboxUnavailable, and ConfigError where settings clash."""
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
        """Opens all that can be opened now. Raises MailboxUnavailable; the next call goes on where this one was."""
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
            await self._let_go()

    # Finding

    async def _begin_anew(self, selected: Selected) -> None:
        """The folder, or what its UIDs mean, is new to us: the first message to look at is the beginning."""
        uids = await self._session.search("HEADER", "Content-Type", '"pkcs7-mime"')
        with suppress(MailboxRefused):
            since = f"{datetime.now(UTC) - LOOK_BACK:%d-%b-%Y}"
            uids += await self._session.search("SINCE", since, "HEADER", "X-QuMail-Protection", '""')
        self._waiting.clear()
        self._originals.clear()
        self._breaks.clear()
        self.lost.clear()
        # Of what has arrived since SELECT, one search may have found a message, and an earlier one not those before it.
        self._seen = min([*uids, selected.next_uid]) - 1
        self._validity = selected.validity

    async def _scan(self) -> None:
        """Looks at all messages that were not looked at yet."""
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

    # Opening

    async def _take(self) -> list[int]:
        """Fetches messages whose turn it is and begins to open them; gives those whose originals are there already."""
        sizes = await self._batch()
        self._in_hand = tuple(sizes)
        messages = {each.uid: each for each in await self._session.messages(sizes)} if sizes else {}
        self._in_hand = ()
        finished: list[int] = []
        for uid in sizes:
            taken = self._taken[uid]
            taken.message = messages.get(uid)
            if taken.message is None:  # somebody else has taken it away
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
        """What takes the place of a message with a forged mark."""
        return Replacement(await off_loop(mime.work(clean), self._marks.proven, copy_of(mark, clean)), mark, None)

    async def _batch(self) -> dict[int, int]:
        """UIDs and sizes of what is fetched next, for which memory is held now."""
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
            self._taken[uid] = MessageInHand(share)
            sizes[uid] = waiting.size
            if alone:
                break
        return sizes

    def _turns(self) -> list[tuple[int, SealedMessage]]:
        """What is due and not taken yet: new messages first, then those that could not be opened before."""
        now = asyncio.get_running_loop().time()
        due = [(uid, each) for uid, each in self._waiting.items() if each.due <= now and uid not in self._taken]
        return sorted(due, key=lambda turn: (turn[1].flagged or turn[1].tries > 0, self._breaks[turn[0]], turn[0]))

    async def _append_opened(self) -> list[int]:
        """Appends the originals of what was opened by now: gives the UIDs of their sealed messages."""
        openings = [taken.opening for taken in self._taken.values() if taken.opening is not None]
        if openings:
            await asyncio.wait(openings, timeout=LINGER_S)
        return [
            uid
            for uid, taken in list(self._taken.items())
            if taken.opening is not None and taken.opening.done() and await self._append(uid, taken, taken.opening)
        ]

    async def _append(self, uid: int, taken: MessageInHand, opening: asyncio.Task[Replacement | None]) -> bool:
        """Whether the original is in the folder now; where it is not, the sealed message is left as it is."""
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
        except Exception as error:  # whatever it is, the message stays
            log.error("imap_opening_failed", folder=self.name, uid=uid, exc_info=error)
            await self._leave(uid, TryLater(type(error).__name__))
            return False
        if original is None or taken.message is None:
            self._over(uid)
            return False
        flags = [flag for flag in taken.message.flags if flag.lower() not in OURS and self._selected.keeps(flag)]
        self._in_hand = (uid,)
        try:
            self._written.add(original.mark)
            await self._session.append(self.name, original.message, flags, taken.message.date)
        except MailboxRefused as error:
            self._in_hand = ()
            await self._opener.give_up(original.opened)
            await self._leave(uid, error)
            return False
        self._in_hand = ()
        taken.opening, taken.opened = None, original.opened
        await self._opener.settle(original.opened)
        self._opener.record(taken.message.content, original)
        taken.mail = original.mail
        return True

    # What becomes of the sealed message

    async def _put_away(self, uids: list[int]) -> None:
        """The originals of these are in the folder: as the settings say, their sealed messages may go now."""
        for uid in uids:
            await self._remove_doubles(uid)
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

    async def _remove_doubles(self, uid: int) -> None:
        """Removes all originals but the first; all stay where nothing may be deleted."""
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
        """The UIDs of the originals with one of these marks that are in the folder now, ascending.

        The server is not asked, and there are none, where fewer than `at_least` were ever seen.
        """
        uids = {uid for mark in marks for uid in self._originals.get(mark, ())}
        return sorted(await self._session.exist(uids)) if len(uids) >= at_least else []

    async def _leave(self, uid: int, error: RelayError) -> None:
        """The message stays as it is and is flagged, once."""
        waiting = self._waiting[uid]
        self._release(uid)
        self._postpone(uid, error)
        if not waiting.flagged and self._selected.keeps(UNOPENED):
            with suppress(MailboxRefused):
                await self._session.add_flag([uid], UNOPENED)
        waiting.flagged = True

    def _is_lost(self, uid: int, taken: MessageInHand) -> bool:
        """Whether a key that no KME knows is no longer late; one attempt alone never decides that."""
        waiting, hold_for = self._waiting[uid], self._hold_for
        age = age_of(taken.message.date) if taken.message is not None else None
        waited = asyncio.get_running_loop().time() - waiting.since
        return waiting.flagged and (waited >= hold_for or (age is not None and age.total_seconds() >= hold_for))

    async def _lose(self, uid: int, error: KeyLost) -> None:
        """The message stays as it is, and is not tried again unless somebody takes its flag away."""
        self._over(uid)
        self.lost.add(uid)
        log.error("imap_key_lost", folder=self.name, uid=uid, kind=type(error).__name__, cause=str(error))
        if self._selected.keeps(LOST):
            with suppress(MailboxRefused):
                await self._session.add_flag([uid], LOST)

    def _postpone(self, uid: int, error: RelayError) -> None:
        """Sets the time of the next attempt."""
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
        """The last connection broke over these: they are tried alone, and after some more breaks, later."""
        for uid in self._in_hand:
            self._breaks[uid] += 1
            if self._breaks[uid] % MOST_BREAKS == 0 and uid in self._waiting:
                self._postpone(uid, MailboxUnavailable("the connection breaks over this message"))
        self._in_hand = ()

    def _over(self, uid: int) -> None:
        """Drops this message: there is nothing more to do for it."""
        self._release(uid)
        del self._waiting[uid]
        del self._breaks[uid]
        if not self._waiting:
            self._originals.clear()

    def _release(self, uid: int) -> None:
        if taken := self._taken.pop(uid, None):
            taken.share.reduce()

    async def _let_go(self) -> None:
        """Gives up what is being opened; keys that come for it are kept by the store."""
        openings = [taken.opening for taken in self._taken.values() if taken.opening is not None]
        for opening in openings:
            opening.cancel()
        for original in await asyncio.gather(*openings, return_exceptions=True):
            if isinstance(original, Replacement):
                await self._opener.give_up(original.opened)
        for uid in list(self._taken):
            self._release(uid)
