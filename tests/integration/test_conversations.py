"""SMTP and LMTP, word for word: what clients say, rightly and wrongly, what the relay answers, and what is delivered.
Standard: RFC 5321, 2033, 2034, 2920, 1870, 3461, 6531; tests/integration/conversations/ has the dialogues, each line with its RFC.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import structlog

from relay.config import TCPAddress
from relay.kme import DevelopmentKMEs, LinkSettings
from tests.testlib.conversation import ExpectedMail, Player, Script, read_scripts
from tests.testlib.exact_sink import Arrived, ExactSink
from tests.testlib.sites import make_site, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPTS = read_scripts(Path(__file__).parent / "conversations")
AFTERWARDS = next(script for script in SCRIPTS if script.title == "The content comes through as it was")
"""Said after a client has left: when this has come out, nothing else is on its way any more."""
LIMITS = {"outgoing": 20_000, "incoming": 40_000}
"""The largest message of each direction, in octets; what is sealed grows by at most 1.4 and some header."""
ENTRIES = {
    "outgoing": frozenset({"outgoing", "smtp"}),
    "incoming": frozenset({"incoming", "smtp"}),
    "outgoing_lmtp": frozenset({"outgoing", "lmtp"}),
    "incoming_lmtp": frozenset({"incoming", "lmtp"}),
    "stranger": frozenset({"incoming", "smtp", "stranger"}),
}
FEW_OCTETS = 4000
"""What is longer is not said octet by octet."""

_TRACE = re.compile(rb"Received: [^\r\n]*\r\n(?:[\t ][^\r\n]*\r\n)*")
_MARK = re.compile(rb"X-QuMail-Protection: [^\r\n]*\r\n")


@dataclass(frozen=True)
class Place:
    """Every entry's address by its name, and where all mail comes out."""

    addresses: dict[str, TCPAddress]
    sink: ExactSink


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    """As all tests here but one use it."""
    async with _place(tmp_path_factory.mktemp("conversations")) as place:
        yield place


@asynccontextmanager
async def _place(directory: Path, workers: int = 0) -> AsyncIterator[Place]:
    """Alice's outgoing relay, whose next hop is Bob's incoming one, and one at Bob's that does not trust us."""
    link = LinkSettings(key_rate=1e8)
    async with AsyncExitStack() as stack:
        kmes = await stack.enter_async_context(
            DevelopmentKMEs(state_dir=directory / "kme", host="127.0.0.1", ports=(0, 0), link=link)
        )
        on_rcpt = {"nobody@bob.example": "550 5.1.1 no such user", "busy@bob.example": "450 4.2.1 busy"}
        sink = await stack.enter_async_context(ExactSink(on_rcpt))
        addresses: dict[str, TCPAddress] = {}
        for name, owner, settings in (
            ("incoming", "bob", 'lmtp = "127.0.0.1:0"'),
            ("stranger", "bob", 'trusted = ["192.0.2.0/24"]'),
            ("outgoing", "alice", 'lmtp = "127.0.0.1:0"'),
        ):
            direction = "outgoing" if owner == "alice" else "incoming"
            site = make_site(
                directory / name, owner, state=kmes.state_dir, kme_url=kmes.urls[owner == "bob"],
                settings=f"max_message_size = {LIMITS[direction]}\n{settings}",
                outgoing=addresses["incoming"] if owner == "alice" else None,
                incoming=sink.address if owner == "bob" else None,
            )  # fmt: skip
            running = await stack.enter_async_context(serving(site, workers))
            addresses |= {each.replace(direction, name): address for each, address in running.items()}
        yield Place(addresses, sink)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of refused commands would fill the log."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    yield


CASES = [
    pytest.param(script, entry, id=f"{script} ({entry})")
    for script in SCRIPTS
    for entry, properties in ENTRIES.items()
    if script.is_for(properties)
]


@pytest.mark.parametrize(("script", "entry"), CASES)
async def test_the_relay_answers_as_the_standards_say_and_delivers_what_was_sent(
    place: Place, script: Script, entry: str
) -> None:
    await _play(place, script, entry)
    if "whole" not in script.only and len(script.says(_variables(entry))) <= FEW_OCTETS:
        await _play(place, script, entry, octet_by_octet=True)


async def test_two_workers_answer_as_one_process(tmp_path: Path) -> None:
    """Each dialogue at one of the entries that it is for, as a whole; `pytest --workers 2` has the others."""
    async with _place(tmp_path, workers=2) as place:
        for number, script in enumerate(SCRIPTS):
            entries = [entry for entry, properties in ENTRIES.items() if script.is_for(properties)]
            await _play(place, script, entries[number % len(entries)])


def _variables(entry: str) -> dict[str, str]:
    """What stands for what in a script that is played there."""
    direction = "outgoing" if "outgoing" in ENTRIES[entry] else "incoming"
    return {
        "EHLO": "LHLO" if "lmtp" in ENTRIES[entry] else "EHLO",
        "LIMIT": str(LIMITS[direction]),
        "HOSTNAME": "relay.alice.example" if direction == "outgoing" else "relay.bob.example",
    }


async def _play(place: Place, script: Script, entry: str, *, octet_by_octet: bool = False) -> None:
    """Has the conversation, and compares what is answered and what comes out."""
    variables, expected = _variables(entry), list[ExpectedMail]()
    place.sink.arrived.clear()
    for each in (script, AFTERWARDS) if script.leaves else (script,):
        await Player(each, variables, octet_by_octet=octet_by_octet).play(place.addresses[entry])
        expected += each.deliveries(variables)
    assert [_content(mail) for mail in place.sink.arrived] == [each.content for each in expected]
    for mail, delivered in zip(place.sink.arrived, expected, strict=True):
        _check_envelope(mail, delivered)


def _content(mail: Arrived) -> bytes:
    """The message without what the relays put on top: a trace field, and a mark where it was sealed."""
    trace = _TRACE.match(mail.message)
    assert trace is not None, mail.message[:200]
    mark = _MARK.match(mail.message, trace.end())
    return mail.message[(mark or trace).end() :]


def _check_envelope(mail: Arrived, delivered: ExpectedMail) -> None:
    words = mail.mail.split(" ")
    assert set(delivered.mail) <= set(words)
    assert not [word for word in words if word.startswith(delivered.not_in_mail)]
    assert not delivered.rcpts or mail.rcpts == delivered.rcpts
