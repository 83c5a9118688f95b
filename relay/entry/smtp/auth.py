"""Checks name and password against the password file or Dovecot, and slows down guessing.
Standard: RFC 4954 (SMTP AUTH and its replies), RFC 4616 (PLAIN); LOGIN as mail programs speak it.
"""

from __future__ import annotations

import asyncio
import binascii
import unicodedata
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import pybase64

from relay.entry.listening import network_of
from relay.entry.smtp.rates import HourlyRate, Seen
from relay.entry.smtp.senders import SenderRights
from relay.entry.smtp.users import MAX_NAME, UserFile
from relay.entry.transaction import printable
from relay.errors import Refuse, TryLater
from relay.runtime.aio import FairTurns

AT_ONCE = 2
"""Number of concurrent password checks: each takes 64 MiB and a processor for some 50 ms."""
PATIENCE_S = 30.0
"""Timeout of a password check, queueing included, and of the wait for other logins before it, in seconds."""


class LoginFailed(Refuse):
    """Unknown user or wrong password; the reply does not disclose which."""

    code = 535
    status = "5.7.8"
    public = "Authentication credentials invalid"


class TooManyFailures(TryLater):
    """Too many failed logins from this network or for this user: no further one is checked now."""

    code = 421
    status = "4.7.0"
    public = "Too many failed logins, try again later"


class LoginUnavailable(TryLater):
    """The password cannot be checked now."""

    code = 454
    status = "4.7.0"
    public = "Temporary authentication failure"


class BadExchange(Refuse):
    """The client's response does not fit its mechanism."""

    def __init__(self, cause: str, reply: str = "501 5.5.2 Not a valid authentication response") -> None:
        self._reply = reply
        super().__init__(cause)

    @property
    def reply(self) -> str:
        """The reply for this fault (RFC 4954, 4)."""
        return self._reply


@dataclass(frozen=True, slots=True)
class Credentials:
    """Name and password as given by the client."""

    name: str
    password: str = field(repr=False)


class BackEnd(Protocol):
    """A source of users."""

    async def verify(self, credentials: Credentials, client: str, *, known: bool) -> str | None:
        """The user's canonical name, None for a wrong password. Raises LoginUnavailable.

        `client` is an IP address, `known` whether this user has logged in from its network before.
        """

    async def rights(self, name: str) -> SenderRights | None:
        """The sender addresses of a user, None if the user no longer exists."""

    def close(self) -> None:
        """Stops its threads."""


class FileBackEnd:
    """Users of the password file; argon2 runs in its own threads."""

    def __init__(self, users: UserFile) -> None:
        self._users = users
        self._turns = FairTurns(AT_ONCE)
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="argon2")

    async def verify(self, credentials: Credentials, client: str, *, known: bool) -> str | None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(PATIENCE_S), self._turns.turn(network_of(client), first=known):
                user = await loop.run_in_executor(
                    self._threads, self._users.verify, credentials.name, credentials.password
                )
        except TimeoutError as error:
            raise LoginUnavailable(f"no password could be checked within {PATIENCE_S:.0f} s") from error
        return user.name if user else None

    async def rights(self, name: str) -> SenderRights | None:
        user = await asyncio.to_thread(self._users.get, name)
        return user.rights if user else None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


FAILURE_DELAY_S = 2.0
"""Delay of the reply to a failed login, in seconds, so that guessing over one connection is slow."""


Charge: TypeAlias = tuple[HourlyRate, str]
"""A rate and a name in it, from which each failure takes a token."""


class UnderWay:
    """Attempts whose result is not known yet: no more of a name than failures are left, so that all of them may fail.

    Those that exceed this wait until another one has ended, and are refused once failures alone have used up a rate.
    """

    def __init__(self) -> None:
        self._number = Counter[Charge]()
        self._waiting: dict[Charge, deque[asyncio.Future[None]]] = {}

    async def begin(self, charges: Sequence[Charge]) -> None:
        """Waits until one more attempt may begin. Raises TooManyFailures, and TimeoutError after PATIENCE_S."""
        woken: Charge | None = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                while full := _full(charges, self._number):
                    if woken is not None and woken != full:
                        self._wake_next(woken)
                    ended = asyncio.get_running_loop().create_future()
                    self._waiting.setdefault(full, deque()).append(ended)
                    woken = full
                    await ended
        except BaseException:
            if woken is not None:  # it does not use what it was woken for
                self._wake_next(woken)
            raise
        self._number.update(charges)

    def end(self, charges: Sequence[Charge], *, failed: bool) -> None:
        """Ends an attempt; only one that has `failed` takes its tokens."""
        for charge in charges:
            rate, name = charge
            if failed:
                rate.take(name)
            self._number[charge] -= 1
            if not self._number[charge]:
                del self._number[charge]
        for charge in charges:
            self._wake_next(charge)

    def _wake_next(self, charge: Charge) -> None:
        waiting = self._waiting.get(charge, deque())
        while waiting:
            ended = waiting.popleft()
            if not ended.done():
                ended.set_result(None)
                break
        if not waiting:
            self._waiting.pop(charge, None)


def _full(charges: Sequence[Charge], under_way: Mapping[Charge, int]) -> Charge | None:
    """The first of these of which no further attempt may begin now. Raises TooManyFailures if none may at all."""
    left = [(charge, charge[0].left(charge[1])) for charge in charges]
    for (_, name), number in left:
        if number < 1:
            raise TooManyFailures(f"failed logins of {printable(name)}")
    return next((charge for charge, number in left if under_way.get(charge, 0) >= number), None)


class Logins:
    """Rate-limits failed logins by the client's network and by the user's name in any spelling.

    From a network where a user has logged in before, only failures of that user from there count. So neither guesses
    from elsewhere nor a neighbour's broken program lock them out.
    """

    def __init__(self, back_end: BackEnd, failures_per_hour: int, key: bytes = b"") -> None:
        """`key` hashes the names in the store."""
        self.back_end = back_end
        self._by_network = HourlyRate(failures_per_hour, "failures network", key=key)
        self._by_user = HourlyRate(failures_per_hour, "failures user", key=key)
        self._by_place = HourlyRate(failures_per_hour, "failures place", key=key)
        self._places = Seen("places", key=key)
        self._under_way = UnderWay()

    @property
    def rates(self) -> tuple[HourlyRate | Seen, ...]:
        """The rates to share with other processes."""
        return self._by_network, self._by_user, self._by_place, self._places

    async def login(self, credentials: Credentials, client: str) -> str:
        """The name of the user who has logged in. Raises LoginFailed, TooManyFailures or LoginUnavailable."""
        network, user = network_of(client), counted_name(credentials.name)
        place = f"{network} {user}"
        known = place in self._places
        charges = [(self._by_place, place)] if known else [(self._by_network, network), (self._by_user, user)]
        try:
            await self._under_way.begin(charges)
        except TimeoutError as error:
            raise LoginUnavailable(f"other logins did not end within {PATIENCE_S:.0f} s") from error
        failed = True  # also where the client leaves meanwhile: a guess is counted
        try:
            name_of_user = await self.back_end.verify(credentials, client, known=known)
            failed = name_of_user is None
        except LoginUnavailable:
            failed = False
            raise
        finally:
            self._under_way.end(charges, failed=failed)
        if name_of_user is None:
            await asyncio.sleep(FAILURE_DELAY_S)
            raise LoginFailed(f"user {printable(user)} from {client}")
        self._places.add(place)
        return name_of_user


def counted_name(name: str) -> str:
    """The name under which failures are counted: the same for all spellings that a back end may treat as one user.

    Case, width, surrounding blanks and domain are dropped, since Dovecot folds case and may drop the domain. Only the
    first MAX_NAME characters are used, which bounds the work.
    """
    cut = name.strip()[:MAX_NAME]
    user = cut.partition("@")[0] or cut
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", user).casefold())
    return folded.strip()[:MAX_NAME]


def parse_plain(response: bytes) -> Credentials:
    """The message of PLAIN: [authorization identity] NUL name NUL password. Raises BadExchange and LoginFailed.

    Acting for another user is not possible.
    """
    parts = response.split(b"\0")
    if len(parts) != 3:
        raise BadExchange("PLAIN without its two NULs")
    acting_for, name, password = parts
    if acting_for not in (b"", name):
        raise LoginFailed(f"acting for {printable(acting_for.decode(errors='replace'))}")
    return credentials_of(name, password)


def credentials_of(name: bytes, password: bytes) -> Credentials:
    """Name and password as text. Raises LoginFailed if no user can have them."""
    try:
        credentials = Credentials(name.decode(), password.decode())
    except UnicodeDecodeError as error:
        raise LoginFailed("name or password is not UTF-8") from error
    if not name or not password or b"\0" in name + password:
        raise LoginFailed("name or password is empty or has a NUL")
    return credentials


def decoded(response: bytes) -> bytes:
    """The octets of one response. Raises BadExchange if it is not base64 (RFC 4954, 4)."""
    try:
        return pybase64.b64decode(response, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadExchange("not base64") from error
