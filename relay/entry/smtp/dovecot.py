"""Checks passwords with Dovecot's auth service, over its Unix socket.
Standard: the Dovecot authentication protocol, version 1 (client side), mechanism PLAIN.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path

import pybase64
import structlog

from relay.entry.smtp.auth import PATIENCE_S, Credentials, LoginUnavailable
from relay.entry.smtp.senders import SenderRights, own_name
from relay.entry.smtp.users import UserFile

log = structlog.get_logger(__name__)

MAX_LINE = 16384
"""Maximum line length of the protocol, in octets."""
MAX_LINES = 200
"""Maximum number of lines in a handshake."""
_ESCAPES = {"0": "\0", "1": "\1", "t": "\t", "r": "\r", "l": "\n"}


class DovecotBackEnd:
    """Dovecot's users. Each login has its own connection, so that none waits for another."""

    def __init__(self, socket: Path, domains: Iterable[str], users: UserFile | None) -> None:
        """A user without a line in `users` may send from their own name, in `domains` if it has no domain."""
        self._socket = socket
        self._domains = tuple(domains)
        self._users = users

    async def verify(self, credentials: Credentials, client: str, *, known: bool) -> str | None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._ask(credentials, client)
        except TimeoutError as error:
            raise LoginUnavailable(f"{self._socket}: no answer within {PATIENCE_S:.0f} s") from error
        except (OSError, EOFError, ValueError) as error:
            raise LoginUnavailable(f"{self._socket}: {error}") from error

    async def rights(self, name: str) -> SenderRights | None:
        user = await asyncio.to_thread(self._users.get, name) if self._users else None
        return user.rights if user else own_name(name, self._domains)

    def close(self) -> None:
        """Does nothing: no connection is kept between two logins."""

    async def handshake(self) -> None:
        """Raises LoginUnavailable unless a Dovecot answers that offers PLAIN."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                reader, writer = await asyncio.open_unix_connection(self._socket, limit=MAX_LINE)
                try:
                    await _shake_hands(reader, writer)
                finally:
                    writer.close()
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            raise LoginUnavailable(f"{self._socket}: {error}") from error

    async def _ask(self, credentials: Credentials, client: str) -> str | None:
        reader, writer = await asyncio.open_unix_connection(self._socket, limit=MAX_LINE)
        try:
            await _shake_hands(reader, writer)
            writer.write(_request(credentials, client))
            return _result(await _words(reader), credentials.name)
        finally:
            writer.close()


def _request(credentials: Credentials, client: str) -> bytes:
    """The AUTH line. `nologin`: no session will be started. `resp=` must be last."""
    response = pybase64.b64encode(f"\0{credentials.name}\0{credentials.password}".encode()).decode()
    parameters = ("AUTH", "1", "PLAIN", "service=smtp", "nologin", f"rip={client}", "secured", f"resp={response}")
    return "\t".join(parameters).encode() + b"\n"


async def _shake_hands(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The handshake of both sides. Raises ValueError if the other side lacks what we need."""
    writer.write(f"VERSION\t1\t1\nCPID\t{os.getpid()}\n".encode())
    plain = False
    for _ in range(MAX_LINES):
        match await _words(reader):
            case ["VERSION", major, *_] if major != "1":
                raise ValueError(f"speaks version {major} of the protocol, not 1")
            case ["MECH", "PLAIN", *_]:
                plain = True
            case ["DONE"] if plain:
                return
            case ["DONE"]:
                raise ValueError("Dovecot does not offer PLAIN; add it to auth_mechanisms")
    raise ValueError("the handshake does not end; this is not Dovecot's auth service")


async def _words(reader: asyncio.StreamReader) -> list[str]:
    """The unescaped parts of one line. Raises EOFError and ValueError."""
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the connection was closed; is this Dovecot's auth service for clients?")
    return [_unescaped(word) for word in line[:-1].decode("utf-8", "replace").split("\t")]


def _unescaped(word: str) -> str:
    first, *escaped = word.split("\1")
    return first + "".join(_ESCAPES.get(part[:1], part[:1]) + part[1:] for part in escaped)


def _result(words: list[str], name: str) -> str | None:
    """The user's name as returned by Dovecot, or None for a wrong password."""
    parameters = dict(word.partition("=")[::2] for word in words[2:])
    match words[:2]:
        case ["OK", "1"]:
            return parameters.get("user") or name
        case ["FAIL", "1"] if "temp" in parameters or parameters.get("code") == "temp_fail":
            raise ValueError("Dovecot has a temporary failure of its own")
        case ["FAIL", "1"]:
            log.info("dovecot_refused", code=parameters.get("code", ""), reason=parameters.get("reason", ""))
            return None
    raise ValueError(f"an answer that PLAIN does not have: {words[0][:20]!r}")
