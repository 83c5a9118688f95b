"""A mail server's side of a milter connection: hands mails over and does what it is told with them.
Standard: milter protocol 6 by miltertest; edits are applied as Postfix does, in the order in which they come.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import miltertest
from miltertest import MilterConnection

from relay.config import TCPAddress

OFFERED = miltertest.SMFI_V6_PROT
ACTIONS = miltertest.SMFI_V6_ACTS & ~miltertest.SMFIF_SETSYMLIST
"""miltertest cannot read lists of macros."""
Field = tuple[str, str]


@dataclass
class Answer:
    """The last word of the milter, its text where it has one, and the edits before it."""

    word: str
    text: str
    edits: list[tuple[str, dict[str, Any]]]

    def removed(self) -> list[str]:
        return [args["rcpt"] for command, args in self.edits if command == miltertest.SMFIR_DELRCPT]

    def applied(self, fields: Sequence[Field], body: str) -> bytes:
        """The message that the mail server has afterwards."""
        now = list(fields)
        pieces = [args["buf"] for command, args in self.edits if command == miltertest.SMFIR_REPLBODY]
        for command, args in self.edits:
            if command == miltertest.SMFIR_ADDHEADER:
                now.append((args["name"], args["value"]))
            elif command == miltertest.SMFIR_CHGHEADER:
                assert args["value"] == ""
                places = [i for i, (name, _) in enumerate(now) if name.lower() == args["name"].lower()]
                del now[places[args["index"] - 1]]
        header = "".join(f"{name}:{value.replace(chr(10), chr(13) + chr(10))}\r\n" for name, value in now)
        return (header + "\r\n" + ("".join(pieces) if pieces else body)).encode()


class MTA:
    """One connection. All methods block: they run in a thread. `close_all` closes those that a test has left open."""

    _open: ClassVar[list[MTA]] = []

    def __init__(self, address: TCPAddress | Path, offered: int = OFFERED) -> None:
        if isinstance(address, Path):
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(str(address))
        else:
            self._socket = socket.create_connection(address, timeout=20)
        self.connection = MilterConnection(self._socket)
        self._offered = offered
        self._open.append(self)

    @classmethod
    def close_all(cls) -> None:
        while cls._open:
            cls._open.pop().close()

    def negotiate(self) -> tuple[int, int]:
        """The actions and the protocol flags that the milter wants."""
        actions, flags = self.connection.optneg_mta(ACTIONS, self._offered)
        return actions, flags

    def mail(
        self,
        fields: Sequence[Field],
        body: str,
        *,
        sender: str = "<ann@alice.example>",
        recipients: Sequence[str] = ("<ben@bob.example>",),
        macros: bool = True,
        user: str = "ann",
    ) -> Answer:
        """Hands over one whole mail, after `negotiate`; parameters stand behind a recipient, with blanks.

        The `user` who has logged in, "" for nobody, is among the macros.
        """
        if macros:
            names = {"{client_addr}": "192.0.2.7", "i": "4XyZ"} | ({"{auth_authen}": user} if user else {})
            self.connection.send_macro(miltertest.SMFIC_MAIL, **names)
        self.connection.send(miltertest.SMFIC_MAIL, args=[sender])
        for recipient in recipients:
            word, args = self.connection.send_get(miltertest.SMFIC_RCPT, args=recipient.split(" "))
            if word != miltertest.SMFIR_CONTINUE:
                return _answer(word, args, [])
        self.content(fields, body)
        return self.end()

    def content(self, fields: Sequence[Field], body: str) -> None:
        """Header and body, for which nobody waits for an answer."""
        for name, value in fields:
            self.connection._send(miltertest.SMFIC_HEADER, name=name, value=value)
        self.connection._send(miltertest.SMFIC_EOH)
        for start in range(0, len(body), miltertest.MILTER_CHUNK_SIZE):
            self.connection._send(miltertest.SMFIC_BODY, buf=body[start : start + miltertest.MILTER_CHUNK_SIZE])

    def end(self) -> Answer:
        *edits, (word, args) = self.connection.send_eom()
        return _answer(word, args, edits)

    def abort(self) -> None:
        self.connection._send(miltertest.SMFIC_ABORT)

    def raw(self, octets: bytes) -> None:
        self._socket.sendall(octets)

    def is_closed(self) -> bool:
        """Waits for the end of the connection; anything else that comes is not an end."""
        try:
            return self._socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def finish_sending(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()


def _answer(word: str, args: dict[str, Any], edits: list[tuple[str, dict[str, Any]]]) -> Answer:
    text = f"{args['smtpcode']} {args['text']}" if word == miltertest.SMFIR_REPLYCODE else ""
    return Answer(word, text, edits)


async def in_thread(work: Any, *args: Any) -> Any:
    """Runs what blocks beside the event loop."""
    async with asyncio.timeout(30):
        return await asyncio.to_thread(work, *args)
