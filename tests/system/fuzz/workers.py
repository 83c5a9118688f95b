"""Fuzz target for what is said at the listeners of a whole relay of two workers, beside one that is a single process.
Standard: both answer alike, hand the same mails on, and a client hears of an end to whatever it says.
"""

from __future__ import annotations

import asyncio
import atexit
import re
import tempfile
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import cycle, product
from pathlib import Path
from string import ascii_lowercase

from relay.config import TCPAddress
from relay.kme import DevelopmentKMEs
from tests.system.fuzz import conversations, milter
from tests.system.fuzz.target import Found, Target, check
from tests.testlib import mails
from tests.testlib.exact_sink import ExactSink
from tests.testlib.sites import make_site, relay_process
from tests.vectors.case import message, read_all

LISTENERS = {b"S": "incoming", b"L": "incoming_lmtp", b"M": "incoming_milter"}
"""The first octet of an input says where it is said."""
ON_RCPT = {
    f"{name}@{domain}.example": reply
    for name, reply in (("hold", "450 4.2.1 busy"), ("refuse", "550 5.1.1 no such user"))
    for domain in ("b", "bob")
}
SAME = re.compile(rb"ann(?=@alice)|(?<=Subj)ect")
"""Three letters that are others in each input, so that no two have the same mail: it would wait for the mark of the first."""
LETTERS = cycle(bytes(each) for each in product(ascii_lowercase.encode(), repeat=3))
CHANGES = re.compile(rb"[0-9a-f]{12}|[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} \+0000")
"""What may differ between two mails: the id, and the time in the trace field."""
DEADLINE_S = 30


@dataclass
class Relay:
    """One that serves, and what it has handed on."""

    addresses: dict[str, TCPAddress]
    sink: ExactSink = field(repr=False)

    async def hears(self, listener: str, data: bytes) -> tuple[bytes, bool, list[tuple[str, tuple[str, ...], bytes]]]:
        """All that came back, whether that is all of it, and the mails that came out."""
        self.sink.arrived.clear()
        reader, writer = await asyncio.open_connection(*self.addresses[listener])
        answered, whole = bytearray(), True
        try:
            async with asyncio.timeout(DEADLINE_S):
                with suppress(ConnectionError):
                    writer.write(data)
                    if listener == "incoming_milter":
                        writer.write_eof()
                    await writer.drain()
                try:
                    while piece := await reader.read(65536):
                        answered += piece
                except ConnectionError:
                    whole = False
        except TimeoutError as error:
            raise Found("the conversation does not end") from error
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        arrived = [(each.mail, each.rcpts, CHANGES.sub(b"", each.message)) for each in self.sink.arrived]
        return CHANGES.sub(b"", bytes(answered)), whole, arrived


def seeds() -> list[bytes]:
    """What the other targets of conversations begin with, and sealed mail that Bob cannot open."""
    said = conversations.seeds()
    begin, content = said[0].split(b"From: ", 1)[0], b"\r\n.\r\n"
    sealed = [case.content for case in read_all() if case.form == "cms" and not case.keys and len(case.content) < 9000]
    whole = [begin + message(each) + content for each in sealed[:3]]
    whole.append(begin + mails.plain() + content + b"RSET\r\n" + begin.partition(b"\r\n")[2] + mails.plain() + content)
    return [
        *(listener + each for listener in (b"S", b"L") for each in (*said, *whole)),
        *(b"M" + each for each in milter.seeds()),
    ]


def target(data: bytes) -> None:
    """One connection to each of the two relays."""
    runner, relays = _relays()
    data = SAME.sub(next(LETTERS), data)
    listener = LISTENERS.get(data[:1], "incoming")
    said = data[1:] if listener == "incoming_milter" else data[1:] + conversations.GOODBYE
    said = said.replace(b"EHLO", b"LHLO") if listener == "incoming_lmtp" else said
    (one, one_whole, from_one), (two, two_whole, from_two) = (
        runner.run(relay.hears(listener, said)) for relay in relays
    )
    check(
        from_one == from_two, f"two workers hand on {len(from_two)} mails, one process {len(from_one)}, or other ones"
    )
    if one_whole and two_whole:
        check(one == two, f"two workers answer {two[:2000]!r}, one process {one[:2000]!r}")


@cache
def _relays() -> tuple[asyncio.Runner, tuple[Relay, Relay]]:
    """One that is a single process, and one of two workers; both are there until this process ends."""
    runner, opened = asyncio.Runner(), AsyncExitStack()
    relays = runner.run(_started(opened))

    def close() -> None:
        runner.run(opened.aclose())
        runner.close()

    atexit.register(close)
    return runner, relays


async def _started(stack: AsyncExitStack) -> tuple[Relay, Relay]:
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-workers-")))
    kmes = await stack.enter_async_context(DevelopmentKMEs(state_dir=directory / "kme", host="127.0.0.1", ports=(0, 0)))
    found: list[Relay] = []
    for workers in (1, 2):
        sink = await stack.enter_async_context(ExactSink(ON_RCPT))
        site = make_site(
            directory / f"bob-{workers}", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address,
            settings='lmtp = "127.0.0.1:0"\nmilter = "127.0.0.1:0"\nmax_message_size = 40000',
        )  # fmt: skip
        site.set_workers(workers)
        relay = await stack.enter_async_context(relay_process(site))
        found.append(Relay(relay.addresses, sink))
    return found[0], found[1]


WORKERS = Target("workers", target, seeds, (*conversations.WORDS, *milter.WORDS), seconds_a_mib=12)
