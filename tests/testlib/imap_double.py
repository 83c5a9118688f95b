"""An IMAP server with one mailbox that remembers what it was told, and answers whatever a test wants instead.
Standard: as much of RFC 3501 as a client needs that looks for messages, appends to a folder and copies to another.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import trustme

from relay.config import TCPAddress
from tests.testlib.acceptor import Acceptor, streams

CAPABILITIES = "IMAP4rev1 AUTH=PLAIN AUTH=XOAUTH2 SASL-IR UIDPLUS MOVE IDLE"


@dataclass
class Stored:
    """One message in a folder."""

    uid: int
    message: bytes
    flags: set[str] = field(default_factory=set)
    date: str = "25-Nov-2026 10:00:00 +0000"


@dataclass
class IMAPDouble:
    """Listens on a free port of loopback.

    `instead` has what is sent in place of an answer, for the next commands of a name; None ends the connection, ""
    leaves the command unanswered. `told` are all command lines, `clear` those that came before TLS. With `starttls`
    it begins unencrypted.
    """

    authority: trustme.CA
    capabilities: str = CAPABILITIES
    greeting: bytes = b"* OK ready\r\n"
    starttls: bool = False
    keywords: str = "\\*"
    instead: dict[str, list[bytes | None]] = field(default_factory=dict)
    folders: dict[str, list[Stored]] = field(default_factory=lambda: {"INBOX": []})
    told: list[str] = field(default_factory=list)
    clear: list[str] = field(default_factory=list)
    address: TCPAddress = TCPAddress("127.0.0.1", 0)
    connections: int = 0
    _acceptor: Acceptor | None = None
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def __aenter__(self) -> Self:
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.authority.issue_cert("localhost").configure_cert(self._tls)
        tls = None if self.starttls else self._tls
        self._acceptor = streams(self._connection, tls, limit=2**20)
        self.address = self._acceptor.listen(self.address)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._acceptor is not None
        await self._acceptor.close()

    def put(self, message: bytes, folder: str = "INBOX", flags: str = "") -> int:
        """One more message; gives its UID."""
        stored = self.folders.setdefault(folder, [])
        uid = max((each.uid for each in stored), default=0) + 1
        stored.append(Stored(uid, message, set(flags.split())))
        return uid

    def messages(self, folder: str = "INBOX") -> list[bytes]:
        return [each.message for each in self.folders.get(folder, [])]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until something is so, which is looked at after each command."""
        async with asyncio.timeout(15), self._changed:
            await self._changed.wait_for(condition)

    async def until_told(self, pattern: str, number: int = 1) -> None:
        """Waits until so many commands match."""
        await self.until(lambda: sum(bool(re.search(pattern, line)) for line in self.told) >= number)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await Conversation(self, reader, writer).hold()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    async def heard(self, line: str) -> None:
        """Remembers a command."""
        async with self._changed:
            self.told.append(line)
            self._changed.notify_all()


class Conversation:
    """One connection to the double."""

    def __init__(self, server: IMAPDouble, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server, self._reader, self._writer = server, reader, writer
        self._encrypted = not server.starttls
        self._folder = "INBOX"

    async def hold(self) -> None:
        self._say(self._server.greeting)
        while line := (await self._reader.readline()).decode(errors="replace").rstrip("\r\n"):
            if not self._encrypted:
                self._server.clear.append(line)
            tag, _, rest = line.partition(" ")
            words = rest.split(" ")
            name = " ".join(words[:2] if words[0] == "UID" else words[:1])
            if (prepared := self._server.instead.get(name)) and len(prepared):
                answer = prepared.pop(0)
                await self._server.heard(rest)
                if answer is None:
                    return
                self._say(answer.replace(b"TAG", tag.encode()))
                continue
            if name == "IDLE":
                await self._server.heard(rest)
            command = getattr(self, name.replace(" ", "_").lower() or "?", None)
            if command is None:
                return  # a TLS handshake that it does not take part in, or no command of IMAP
            answer = await command(rest)
            if name != "IDLE":
                await self._server.heard(rest)
            self._say(f"{tag} {answer}\r\n".encode())
            if name == "LOGOUT":
                return
            if name == "STARTTLS":
                await self._writer.start_tls(self._server._tls)
                self._encrypted = True

    def _say(self, what: bytes) -> None:
        self._writer.write(what)

    async def starttls(self, rest: str) -> str:
        return "OK begin"

    async def capability(self, rest: str) -> str:
        self._say(f"* CAPABILITY {self._server.capabilities}\r\n".encode())
        return "OK done"

    async def authenticate(self, rest: str) -> str:
        if len(rest.split()) == 2:
            self._say(b"+ \r\n")
            await self._server.heard((await self._reader.readline()).decode().strip())
        return "OK welcome"

    async def login(self, rest: str) -> str:
        return "OK welcome"

    async def logout(self, rest: str) -> str:
        self._say(b"* BYE then\r\n")
        return "OK bye"

    async def select(self, rest: str) -> str:
        self._folder = rest.split(" ", 1)[1].strip('"')
        stored = self._server.folders[self._folder]
        following = max((each.uid for each in stored), default=0) + 1
        flags = f"(\\Seen \\Flagged \\Deleted {self._server.keywords})"
        self._say(
            f"* {len(stored)} EXISTS\r\n* OK [UIDVALIDITY 7] x\r\n* OK [UIDNEXT {following}] x\r\n"
            f"* OK [PERMANENTFLAGS {flags}] x\r\n".encode()
        )
        return "OK [READ-WRITE] done"

    async def uid_search(self, rest: str) -> str:
        lowest = int(found[1]) if (found := re.search(r"UID (\d+):\*", rest)) else 0
        wanted = next((word for word in ("pkcs7-mime", "X-QuMail-Protection") if word in rest), "").encode()
        uids = [
            str(each.uid)
            for each in self._server.folders[self._folder]
            if each.uid >= lowest and wanted in each.message
        ]
        self._say(f"* SEARCH {' '.join(uids)}\r\n".encode())
        return "OK done"

    async def uid_fetch(self, rest: str) -> str:
        for number, each in self.chosen(rest):
            header = each.message.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
            chosen = b"".join(
                re.findall(rb"(?im)^(?:Content-Type|X-QuMail-Protection|Message-ID):.*\r\n(?:[ \t].*\r\n)*", header)
            )
            flags = " ".join(sorted(each.flags))
            self._say(f'* {number} FETCH (UID {each.uid} FLAGS ({flags}) INTERNALDATE "{each.date}" '.encode())
            self._say(f"RFC822.SIZE {len(each.message)}".encode())
            if "HEADER.FIELDS" in rest:
                self._say(b" BODY[HEADER.FIELDS (CONTENT-TYPE)]<0> {%d}\r\n%s" % (len(chosen) + 2, chosen + b"\r\n"))
            elif "BODY.PEEK[]" in rest:
                self._say(b" BODY[] {%d}\r\n%s" % (len(each.message), each.message))
            self._say(b")\r\n")
        return "OK done"

    async def uid_store(self, rest: str) -> str:
        flags = re.search(r"\((.*)\)", rest)
        assert flags is not None
        for _, each in self.chosen(rest):
            each.flags |= set(flags[1].split())
        return "OK done"

    async def uid_copy(self, rest: str) -> str:
        folder = rest.rpartition(" ")[2].strip('"')
        if folder not in self._server.folders:
            return "NO [TRYCREATE] no such folder"
        for _, each in self.chosen(rest):
            self._server.put(each.message, folder, " ".join(each.flags))
        return "OK done"

    async def uid_expunge(self, rest: str) -> str:
        gone = [each for _, each in self.chosen(rest) if "\\Deleted" in each.flags]
        stored = self._server.folders[self._folder]
        stored[:] = [each for each in stored if each not in gone]
        return "OK done"

    async def uid_move(self, rest: str) -> str:
        answer = await self.uid_copy(rest)
        if answer.startswith("OK"):
            for _, each in self.chosen(rest):
                each.flags.add("\\Deleted")
            await self.uid_expunge(rest)
        return answer

    async def create(self, rest: str) -> str:
        self._server.folders[rest.split(" ", 1)[1].strip('"')] = []
        return "OK done"

    async def subscribe(self, rest: str) -> str:
        return "OK done"

    async def append(self, rest: str) -> str:
        found = re.match(r'APPEND "(.*?)" \((.*?)\) "(.*?)" \{(\d+)\}$', rest)
        assert found is not None, rest
        self._say(b"+ go on\r\n")
        content = await self._reader.readexactly(int(found[4]) + 2)
        uid = self._server.put(content[:-2], found[1], found[2])
        self._server.folders[found[1]][-1].date = found[3]
        return f"OK [APPENDUID 7 {uid}] done"

    async def idle(self, rest: str) -> str:
        self._say(b"+ idling\r\n")
        assert await self._reader.readline() in (b"DONE\r\n", b"")
        return "OK done"

    def chosen(self, rest: str) -> list[tuple[int, Stored]]:
        ranges = [[int(end) for end in each.split(":")] for each in rest.split(" ")[2].split(",")]
        stored = self._server.folders[self._folder]
        return [
            (number, each)
            for number, each in enumerate(stored, 1)
            if any(bounds[0] <= each.uid <= bounds[-1] for bounds in ranges)
        ]
