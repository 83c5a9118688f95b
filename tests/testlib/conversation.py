"""Reads SMTP conversations from data files and plays them, octet for octet, against a listening relay.
Standard: RFC 5321 4.2 and RFC 2034 for the form of every reply; tests/integration/conversations/README.md for that of the files.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from relay.config import TCPAddress

DEADLINE_S = 30
"""For a whole conversation; only a relay that hangs needs it."""
OPENINGS = {
    "hello": ("S: 220", "C: {EHLO} client.example", "S: 250"),
    "mail": (
        "> hello",
        "C: MAIL FROM:<ann@alice.example>",
        "S: 250 2.1.0",
        "C: RCPT TO:<ben@bob.example>",
        "S: 250 2.1.5",
    ),
    "data": ("> mail", "C: DATA", "S: 354"),
}
"""How most conversations begin; `> data` stands for all these lines."""
PROPERTIES = frozenset({"smtp", "lmtp", "incoming", "outgoing", "stranger", "whole"})
OCTETS = {"CRLF": "\r\n", "CR": "\r", "LF": "\n", "NUL": "\0", "TAB": "\t", "SP": " "}

_LINE = re.compile(r"(?:(\d+) x )?(C:|C\.|C!|S:|S\+|S-|D:|D\+|D>|D-)(?: (.*))?")
_BRACES = re.compile(r"\{([^{}]*)\}")
_REPLY = re.compile(r"([2-5]\d\d)([ -])([\x20-\x7e]*)\r\n")
_ENHANCED = re.compile(r"([245])\.\d{1,3}\.\d{1,3} \S")
MAX_REPLY_OCTETS = 512
"""RFC 5321, 4.5.3.1.5."""


@dataclass(frozen=True)
class Step:
    """One line of a file: what kind, the rest, and where it stands."""

    kind: str
    text: str
    where: str


_GOOD_BYE = tuple(Step(kind, text, "at the end") for kind, text in (("C:", "QUIT"), ("S:", "221"), ("S:", "closed")))


@dataclass(frozen=True)
class ExpectedMail:
    """A mail that must have come out at the far end, and words that its MAIL and RCPT commands have or lack."""

    content: bytes
    mail: tuple[str, ...] = ()
    not_in_mail: tuple[str, ...] = ()
    rcpts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Script:
    """One conversation: what is said and answered, and what an entry has to be for it (nothing for any one)."""

    file: str
    title: str
    only: frozenset[str]
    steps: tuple[Step, ...] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.file}: {self.title}"

    def is_for(self, entry: frozenset[str]) -> bool:
        """Whether it can be played at an entry of these properties; strangers get only what is meant for them."""
        return self.only - {"whole"} <= entry and ("stranger" in self.only) == ("stranger" in entry)

    @property
    def leaves(self) -> bool:
        """Whether the client cuts the connection."""
        return any(step.kind == "C!" for step in self.steps)

    def says(self, variables: Mapping[str, str]) -> bytes:
        """All that the client sends."""
        return b"".join(_sent(step, variables) for step in self.steps if step.kind in ("C:", "C."))

    def deliveries(self, variables: Mapping[str, str]) -> list[ExpectedMail]:
        """What must have come out at the far end, in order."""
        found: list[ExpectedMail] = []
        for step in self.steps:
            octets = expanded(step.text, variables)
            words = tuple(octets.decode().split()) if step.kind in ("D+", "D-", "D>") else ()
            match step.kind:
                case "D:":
                    found.append(ExpectedMail(octets))
                case "D+":
                    found[-1] = replace(found[-1], mail=words)
                case "D-":
                    found[-1] = replace(found[-1], not_in_mail=words)
                case "D>":
                    found[-1] = replace(found[-1], rcpts=(*found[-1].rcpts, " ".join(words)))
        return found


def read_scripts(directory: Path) -> list[Script]:
    """All conversations of all files; a line that cannot be understood is a ValueError."""
    return [script for path in sorted(directory.glob("*.txt")) for script in _scripts(path)]


def _scripts(path: Path) -> Iterator[Script]:
    title, only, steps = "", frozenset[str](), list[Step]()
    for number, line in enumerate([*path.read_text().splitlines(), "== "], 1):
        if line.startswith("== "):
            if title:
                yield Script(path.stem, title, only, tuple(steps))
            title, only, steps = line[3:].strip(), frozenset(), []
        elif line.startswith("@ "):
            only = frozenset(line[2:].split())
            if not only <= PROPERTIES:
                raise ValueError(f"{path.name}:{number}: unknown: {' '.join(only - PROPERTIES)}")
        elif line.strip() and not line.startswith("#"):
            steps += _steps(line, f"{path.name}:{number}")


def _steps(line: str, where: str) -> Iterator[Step]:
    if line.startswith("> "):
        for each in OPENINGS[line[2:].strip()]:
            yield from _steps(each, where)
        return
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"{where}: cannot be understood: {line}")
    for number in range(1, int(match[1] or 1) + 1):
        yield Step(match[2], (match[3] or "").replace("{n}", str(number)), where)


def expanded(text: str, variables: Mapping[str, str]) -> bytes:
    """The octets that a text with {braces} stands for."""
    pieces: list[bytes] = []
    place = 0
    for match in _BRACES.finditer(text):
        pieces += [text[place : match.start()].encode(), _inside(match[1], variables)]
        place = match.end()
    return b"".join([*pieces, text[place:].encode()])


def _inside(text: str, variables: Mapping[str, str]) -> bytes:
    if text in OCTETS:
        return OCTETS[text].encode()
    if re.fullmatch(r"x(?:[0-9A-F]{2})+", text):
        return bytes.fromhex(text[1:])
    if repeated := re.fullmatch(r"(.+)\*([\w+-]+)", text):
        return repeated[1].encode() * _number(repeated[2], variables)
    return variables[text].encode() if text in variables else str(_number(text, variables)).encode()


def _number(text: str, variables: Mapping[str, str]) -> int:
    """`1000`, `LIMIT`, `LIMIT-20`."""
    match = re.fullmatch(r"(\w+)([+-]\d+)?", text)
    if match is None:
        raise ValueError(f"no number: {text}")
    return int(variables.get(match[1], match[1])) + int(match[2] or 0)


def _sent(step: Step, variables: Mapping[str, str]) -> bytes:
    return expanded(step.text, variables) + (b"\r\n" if step.kind == "C:" else b"")


class Player:
    """Plays one script over one connection; what differs is an AssertionError with all that was said."""

    def __init__(self, script: Script, variables: Mapping[str, str], *, octet_by_octet: bool = False) -> None:
        """`variables` are EHLO, LIMIT and the like; lines go out together as far as no reply is waited for."""
        self._script, self._variables, self._single = script, variables, octet_by_octet
        self._said: list[str] = []
        self._unsent = bytearray()
        self._last: list[str] = []

    async def play(self, address: TCPAddress) -> None:
        """From connecting to the end; says QUIT where the script does not end the connection."""
        async with asyncio.timeout(DEADLINE_S):
            self._reader, self._writer = await asyncio.open_connection(*address)
            try:
                for step in self._script.steps:
                    await self._step(step)
                if not any(step.text in ("closed", "leaves") for step in self._script.steps):
                    for step in _GOOD_BYE:
                        await self._step(step)
            finally:
                self._writer.close()
                with contextlib.suppress(ConnectionError):
                    await self._writer.wait_closed()

    async def _step(self, step: Step) -> None:
        match step.kind:
            case "C:" | "C.":
                self._unsent += _sent(step, self._variables)
                self._said.append(f"C: {_sent(step, self._variables)[:200]!r}")
            case "C!":
                await self._send()
                assert step.text == "leaves", step
                self._writer.transport.abort()
            case "S:":
                await self._send()
                await (self._closed(step) if step.text == "closed" else self._reply(step))
            case "S+":
                self._check(self._has_line(step), step, "but there is no such line")
            case "S-":
                self._check(not self._has_line(step), step, "but there is such a line")

    def _text(self, step: Step) -> str:
        return expanded(step.text, self._variables).decode()

    def _has_line(self, step: Step) -> bool:
        return any(line.startswith(self._text(step)) for line in self._last)

    async def _send(self) -> None:
        octets, self._unsent = bytes(self._unsent), bytearray()
        pieces = [octets[n : n + 1] for n in range(len(octets))] if self._single else [octets]
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            await asyncio.sleep(0)  # lets a relay in the same process read what has come so far

    async def _reply(self, step: Step) -> None:
        self._last = []
        code, more = "", "-"
        while more == "-":
            line = (await self._reader.readline()).decode("latin-1")
            self._said.append(f"S: {line!r}")
            match = _REPLY.fullmatch(line)
            self._check(match is not None and len(line) <= MAX_REPLY_OCTETS, step, "but this is no reply line")
            assert match is not None
            self._check(code in ("", match[1]), step, "but its lines have different codes")
            code, more = match[1], match[2]
            self._last.append(match[3])
        self._check(_fits(self._text(step), code, self._last[-1]), step, "but it was another reply")
        self._check(self._well_formed(code), step, "but the enhanced status code is missing or of another class")

    def _well_formed(self, code: str) -> bool:
        """RFC 2034: every 2xx, 4xx and 5xx has an enhanced status code, but for greeting and answer to EHLO."""
        if code[0] == "3" or self._last[0].startswith(self._variables["HOSTNAME"]):
            return True
        found = [_ENHANCED.match(line) for line in self._last]
        return all(match is not None and match[1] == code[0] for match in found)

    async def _closed(self, step: Step) -> None:
        rest = await self._reader.read()
        self._said.append(f"S: {rest!r} and closed")
        self._check(not rest, step, "but the relay said more")

    def _check(self, condition: bool, step: Step, what: str) -> None:
        if not condition:
            dialogue = "\n".join(self._said[-30:])
            raise AssertionError(f"{step.where}: {step.kind} {step.text} {what}; the dialogue:\n{dialogue}")


def _fits(pattern: str, code: str, text: str) -> bool:
    """`250`, `5xx`, `500|502 5.5.1`: the code, and how the last line's text begins."""
    codes, _, beginning = pattern.partition(" ")
    forms = codes.replace("x", r"\d").split("|")
    return any(re.fullmatch(form, code) for form in forms) and text.startswith(beginning)
