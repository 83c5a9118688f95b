"""One verified, logged-in connection to an IMAP server, and the commands that the watcher needs.
Standard: RFC 3501, RFC 8314 (TLS), RFC 4959 (SASL-IR), RFC 2177 (IDLE), RFC 4315 (UIDPLUS), RFC 6851 (MOVE),
RFC 2342 (NAMESPACE).
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from relay.config import IMAPSettings, TCPAddress
from relay.entry.imap import responses
from relay.entry.imap.aioimaplib_base import IMAPConnection, Request, Untagged, printable, silence_log
from relay.entry.imap.responses import Fetched, Namespaces, quoted, uid_set
from relay.errors import ConfigError, MailboxUnavailable
from relay.files import pem
from relay.runtime.aio import off_loop

LONGEST_IDLE_S = 29 * 60.0
"""Maximum length of an IDLE, in seconds; servers may end one after half an hour (RFC 2177)."""
LEAST_IDLE_S, QUICK_IDLES = 1.0, 2
"""Length under which an IDLE is quick, in seconds, and the number of quick ones in a row before there are pauses.

Some servers end each IDLE at once, or report news that are none: they are asked less and less often.
"""
LEAST_OCTETS_PER_S = 20_000
"""Minimum transfer rate of a connection, in octets a second."""
MAX_FIELDS_OCTETS = 8192
"""Maximum size of the header fields requested of each message, in octets."""
MAX_OVERVIEW_OCTETS = 16 * 2**20
MAX_IDLE_OCTETS = 2**20
GOODBYE_S = 5.0
LOGIN_REFUSED = frozenset({"AUTHENTICATIONFAILED", "AUTHORIZATIONFAILED", "EXPIRED"})
"""Response codes (RFC 5530) that mean a wrong password; a NO without one may be an outage."""

_Parsed = TypeVar("_Parsed")


class MailboxRefused(MailboxUnavailable):
    """The server replied NO or BAD; the connection remains usable. `why` is the response code."""

    def __init__(self, server: str, command: str, text: str) -> None:
        super().__init__(f"{server}: {command}: {text}")
        self.why = text.partition("[")[2].partition("]")[0].upper()


class LoginRefused(MailboxUnavailable):
    """The server refused the password or token, and will refuse it again."""


@dataclass(frozen=True, slots=True)
class Credential:
    """Login name and secret; never logged."""

    user: str
    secret: str = field(repr=False)
    mechanism: Literal["PLAIN", "XOAUTH2"]

    @property
    def initial_response(self) -> bytes:
        """The mechanism's only message, in base64."""
        if self.mechanism == "XOAUTH2":
            text = f"user={self.user}\1auth=Bearer {self.secret}\1\1"
        else:
            text = f"\0{self.user}\0{self.secret}"
        return base64.b64encode(text.encode())


@dataclass(frozen=True, slots=True)
class Selected:
    """The response to SELECT; `keywords` are the permanent flags, with `*` for any."""

    validity: int
    next_uid: int
    keywords: frozenset[str]

    def keeps(self, flag: str) -> bool:
        """Whether a flag is permanent."""
        return flag.lower() in self.keywords or ("\\*" in self.keywords and not flag.startswith("\\"))


@asynccontextmanager
async def connected(account: IMAPSettings, login: Credential) -> AsyncIterator[Session]:
    """A logged-in session over verified TLS; logs out, or aborts, at the end.

    Raises MailboxUnavailable (LoginRefused for a wrong secret), and ConfigError for faulty account settings.
    """
    silence_log()
    session = Session(account, await _connection(account, _tls(account)))
    try:
        await session.log_in(login)
        yield session
    except BaseException:
        session.protocol.end("given up")
        raise
    await session.log_out()


def _tls(account: IMAPSettings) -> ssl.SSLContext:
    try:
        return pem.trusting(account.ca) if account.ca else ssl.create_default_context()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{account.ca}: cannot be used as CA certificates: {error}") from error


async def _connection(account: IMAPSettings, tls: ssl.SSLContext) -> IMAPConnection:
    """An encrypted, verified connection after the greeting. Raises MailboxUnavailable."""
    server = str(TCPAddress(account.host, account.port))
    protocol = IMAPConnection(server)
    implicit = account.tls == "implicit"
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(account.timeout):
            await loop.create_connection(
                lambda: protocol,
                account.host,
                account.port,
                ssl=tls if implicit else None,
                server_hostname=account.host if implicit else None,
            )
            await protocol.greeted.wait()
            if not implicit:
                await _start_tls(protocol, server, account.host, tls)
    except TimeoutError as error:
        protocol.end("no connection in time")
        raise MailboxUnavailable(f"{server}: no connection within {account.timeout:.0f} s") from error
    except OSError as error:  # includes ssl.SSLError
        protocol.end("no connection")
        raise MailboxUnavailable(f"{server}: {error}") from error
    except BaseException:
        protocol.end("given up")
        raise
    return protocol


async def _start_tls(protocol: IMAPConnection, server: str, host: str, tls: ssl.SSLContext) -> None:
    """Starts TLS; capabilities sent in clear are discarded (RFC 3501, 6.2.1)."""
    request = Request("STARTTLS", protocol.new_tag())
    await protocol.execute(request)
    if request.response.result != "OK" or not protocol.is_quiet:
        raise MailboxUnavailable(f"{server}: STARTTLS is refused, or spoken after: nothing is sent unencrypted")
    loop = asyncio.get_running_loop()
    protocol.transport = await loop.start_tls(protocol.transport, protocol, tls, server_hostname=host)


class Session:
    """Commands, one at a time; each raises MailboxRefused for NO or BAD, else MailboxUnavailable."""

    def __init__(self, account: IMAPSettings, protocol: IMAPConnection) -> None:
        self.account = account
        self.protocol = protocol
        self.server = str(TCPAddress(account.host, account.port))
        self._answer = b""
        self._may_idle = account.idle
        self._quick_idles = 0
        self._namespaces = Namespaces()

    async def log_in(self, login: Credential) -> None:
        """Authenticates, and reads the server's capabilities."""
        await self._learn_capabilities()
        try:
            if f"AUTH={login.mechanism}" in self._capabilities:
                await self._authenticate(login)
            elif login.mechanism == "PLAIN" and "LOGINDISABLED" not in self._capabilities:
                await self._command("LOGIN", quoted(login.user), quoted(login.secret))
            else:
                raise ConfigError(f"{self.server}: the server does not offer {login.mechanism}")
        except MailboxRefused as error:
            if error.why in LOGIN_REFUSED:
                raise LoginRefused(str(error)) from error
            raise
        self.protocol.is_logged_in()
        await self._learn_capabilities()
        if self.can("NAMESPACE"):
            with suppress(MailboxRefused):
                self._namespaces = await self._parsed(await self._command("NAMESPACE"), responses.namespaces)

    def can(self, capability: str) -> bool:
        """Whether the server has this capability."""
        return capability in self._capabilities

    def place(self, folder: str) -> str:
        """The server's name of a configured folder, in modified UTF-7."""
        return self._namespaces.placed(folder)

    def receives_sealed(self, folder: str) -> bool:
        """Whether sealed messages are moved to this folder, which must not be watched."""
        account = self.account
        return account.after == "move" and self.place(account.sealed_folder) == self.place(folder)

    async def log_out(self) -> None:
        """Logs out, with a short timeout, and closes the connection."""
        with suppress(MailboxUnavailable, TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                await self._command("LOGOUT")
        self.protocol.end("logged out")

    async def select(self, folder: str) -> Selected:
        """Opens a folder for reading and writing."""
        self.protocol.news.clear()
        untagged = await self._command("SELECT", quoted(self.place(folder)))
        self.protocol.has_selected()
        if self._answer.upper().startswith(b"[READ-ONLY]"):
            raise MailboxUnavailable(f"{self.server}: {folder!r} may only be read by this user")
        codes = {name: responses.status_code(untagged, name) for name in ("UIDVALIDITY", "UIDNEXT", "PERMANENTFLAGS")}
        validity, next_uid = (responses.number_of(codes[name]) for name in ("UIDVALIDITY", "UIDNEXT"))
        if validity is None:
            raise MailboxUnavailable(f"{self.server}: {folder!r} has no UIDVALIDITY, so its messages have no names")
        permanent = frozenset((codes["PERMANENTFLAGS"] or "").strip("()").lower().split())
        return Selected(validity, next_uid or 1, permanent)

    async def search(self, *criteria: str) -> list[int]:
        """The UIDs of the messages that match all criteria, ascending."""
        untagged = await self._command("SEARCH", *criteria, uid=True, allow=MAX_OVERVIEW_OCTETS)
        return await self._parsed(untagged, responses.searched)

    async def overview(self, first: int, last: int, fields: Sequence[str]) -> list[Fetched]:
        """UID, size, flags and these header fields of the messages with UIDs from `first` to `last`."""
        section = f"BODY.PEEK[HEADER.FIELDS ({' '.join(fields)})]<0.{MAX_FIELDS_OCTETS}>"
        fetched = await self._fetch(f"{first}:{last}", f"(UID FLAGS RFC822.SIZE {section})", MAX_OVERVIEW_OCTETS)
        return [each for each in fetched if first <= each.uid <= last]

    async def messages(self, sizes: dict[int, int]) -> list[Fetched]:
        """The complete messages with these UIDs; `sizes` are in octets, as reported by the server.

        Reported sizes are not exact, so half as much again is accepted.
        """
        size = sum(sizes.values()) * 3 // 2
        fetched = await self._fetch(uid_set(sizes), "(UID FLAGS INTERNALDATE BODY.PEEK[])", size)
        return [each for each in fetched if each.uid in sizes]

    async def exist(self, uids: Iterable[int]) -> set[int]:
        """Those of these UIDs that still exist."""
        return {each.uid for each in await self._fetch(uid_set(uids), "(UID)")}

    async def append(self, folder: str, message: bytes, flags: Collection[str], date: str) -> None:
        """Appends a message to a folder; it is on the server's disk when this returns."""
        words = [quoted(self.place(folder)), f"({' '.join(flags)})"]
        if date:
            words.append(quoted(date))
        reply = message + b"\r\n"
        await self._command("APPEND", *words, f"{{{len(message)}}}", replies=[reply])

    async def add_flag(self, uids: Iterable[int], flag: str) -> None:
        """Adds a flag to messages."""
        await self._command("STORE", uid_set(uids), "+FLAGS.SILENT", f"({flag})", uid=True)

    async def move(self, uids: Collection[int], folder: str) -> None:
        """Moves messages to a folder, which is created if missing; UIDs that no longer exist are ignored."""
        try:
            await self._move(uids, folder)
        except MailboxRefused as error:
            if error.why != "TRYCREATE":
                raise
            with suppress(MailboxRefused):  # may have been created concurrently
                await self._command("CREATE", quoted(self.place(folder)))
                await self._command("SUBSCRIBE", quoted(self.place(folder)))
            await self._move(uids, folder)

    async def remove(self, uids: Collection[int]) -> None:
        """Deletes messages; without UIDPLUS they are only flagged as deleted."""
        await self.add_flag(uids, "\\Deleted")
        if self.can("UIDPLUS"):
            await self._command("EXPUNGE", uid_set(uids), uid=True)

    async def idle(self, seconds: float) -> bool:
        """Waits up to `seconds` for new messages; returns whether there are any.

        Without IDLE it always takes all of that time, and soon the same if the server ends each IDLE at once.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        if self._may_idle and self.can("IDLE") and not self.protocol.news.is_set():
            try:
                await self._idle(min(seconds, LONGEST_IDLE_S))
            except MailboxRefused:
                self._may_idle = False
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.protocol.news.wait()
        news, waited = self.protocol.news.is_set(), loop.time() - began
        self._quick_idles = self._quick_idles + 1 if waited < min(seconds, LEAST_IDLE_S) else 0
        if self._quick_idles > QUICK_IDLES:
            await asyncio.sleep(min(LEAST_IDLE_S if news else seconds - waited, 0.1 * 2 ** min(self._quick_idles, 20)))
        return news

    async def _idle(self, seconds: float) -> None:
        idling, limit = self.protocol.idling, self.account.timeout
        idling.clear()
        request = self._command("IDLE", allow=MAX_IDLE_OCTETS, seconds=seconds + 2 * limit)
        ended = asyncio.create_task(request)
        ended.add_done_callback(lambda _: idling.set())
        news = asyncio.create_task(self.protocol.news.wait())
        try:
            async with asyncio.timeout(limit):
                await idling.wait()
            await asyncio.wait({ended, news}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                self.protocol.idle_done()
            async with asyncio.timeout(limit):
                await ended
        except TimeoutError as error:
            self.protocol.end("IDLE is not answered")
            raise MailboxUnavailable(f"{self.server}: IDLE is not answered") from error
        finally:
            for task in (ended, news):
                task.cancel()
            await asyncio.gather(ended, news, return_exceptions=True)

    @property
    def _capabilities(self) -> set[str]:
        capabilities: set[str] = self.protocol.capabilities
        return capabilities

    async def _learn_capabilities(self) -> None:
        untagged = await self._command("CAPABILITY")
        words = [line[2:].decode("ascii", "replace").upper().split() for [line, *_] in untagged]
        self.protocol.capabilities = {
            word for name, *rest in filter(None, words) if name == "CAPABILITY" for word in rest
        }

    async def _authenticate(self, login: Credential) -> None:
        """Authenticates; a server that refuses a token may first send an error and wait for an empty line."""
        if self.can("SASL-IR"):
            words, replies = [login.initial_response.decode()], [b"\r\n"]
        else:
            words, replies = [], [login.initial_response + b"\r\n", b"\r\n"]
        await self._command("AUTHENTICATE", login.mechanism, *words, replies=replies)

    async def _move(self, uids: Collection[int], folder: str) -> None:
        if self.can("MOVE"):
            await self._command("MOVE", uid_set(uids), quoted(self.place(folder)), uid=True)
        else:
            await self._command("COPY", uid_set(uids), quoted(self.place(folder)), uid=True)
            await self.remove(uids)

    async def _fetch(self, uids: str, items: str, size: int = 0) -> list[Fetched]:
        untagged = await self._command("FETCH", uids, items, uid=True, allow=size)
        return await self._parsed(untagged, lambda said: list(responses.fetched(said)))

    async def _parsed(self, untagged: list[Untagged], parse: Callable[[list[Untagged]], _Parsed]) -> _Parsed:
        """Parses responses, in a thread if they are large."""
        try:
            return await off_loop(sum(len(part) for said in untagged for part in said), parse, untagged)
        except ValueError as error:
            self.protocol.end(f"a response cannot be understood: {error}")
            raise MailboxUnavailable(f"{self.server}: a response cannot be understood: {error}") from error

    async def _command(
        self,
        name: str,
        *words: str,
        uid: bool = False,
        replies: Sequence[bytes] = (),
        allow: int = 0,
        seconds: float | None = None,
    ) -> list[Untagged]:
        """Runs a command and returns its untagged responses, of at most `allow` octets plus slack.

        The timeout is `seconds`. By default it is the account's timeout without any data, and in all the time for these
        octets at LEAST_OCTETS_PER_S.
        """
        request = Request(name, self.protocol.new_tag(), *words, prefix="UID" if uid else None, replies=replies)
        self.protocol.allow(allow)
        now = asyncio.get_running_loop().time
        silence = seconds or self.account.timeout + sum(map(len, replies)) / LEAST_OCTETS_PER_S
        last = now() + silence + (0 if seconds else allow / LEAST_OCTETS_PER_S)
        try:
            async with asyncio.timeout(silence) as limit:
                self.protocol.on_data = lambda: _extend(limit, min(now() + silence, last))
                await self.protocol.execute(request)
        except TimeoutError as error:
            self.protocol.end(f"{name} was not answered in time")
            raise MailboxUnavailable(f"{self.server}: {name} was not answered in time") from error
        except ValueError as error:
            raise MailboxUnavailable(f"{self.server}: {name}: a word of it has control characters") from error
        finally:
            self.protocol.on_data = lambda: None
        self._answer = request.response.lines[-1]
        if request.response.result != "OK":
            raise MailboxRefused(self.server, name, printable(self._answer))
        return request.untagged


def _extend(limit: asyncio.Timeout, when: float) -> None:
    if not limit.expired():
        limit.reschedule(when)
