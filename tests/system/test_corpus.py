"""Every awkward message, at every level, by SMTP and LMTP: it arrives octet for octet, or is refused with the reason.
Standard: only Bcc, Resent-Bcc and Return-Path are left out on the way (relay/FORMAT.md); nothing else changes.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from relay.config import TCPAddress
from relay.formats import mime
from relay.forward import stuffed
from relay.kme import DevelopmentKMEs, LinkSettings
from relay.schemes.pqc import PQC
from tests.system.corpus import Case, corpus
from tests.testlib.exact_sink import ExactSink
from tests.testlib.identities import Identities
from tests.testlib.keys import MemoryKeys
from tests.testlib.long import sized
from tests.testlib.mails import unproven
from tests.testlib.payloads import payload
from tests.testlib.relay_command import run
from tests.testlib.sites import make_site, relay_process

pytestmark = pytest.mark.asyncio(loop_scope="module")

LEVELS = {
    "otp": ('levels = ["otp"]', "otp"),
    "aes": ('levels = ["aes"]', "aes"),
    "pqc": ('levels = ["pqc"]\n', "pqc"),
    "rsa": ('levels = ["rsa"]\n', "rsa"),
    "enhanced": ('levels = ["pqc+aes"]\n', "pqc+aes"),
}
"""What the policy of the recipient of this name says, and what the mark at Bob's has to say."""

RULES = """
[[when]]
subject_tag = "[secret]"
otherwise = "refuse"

[[when]]
header = "X-Spam: yes*"
otherwise = "refuse"

[[when]]
attachment_name = "*.docx"
otherwise = "refuse"
"""
"""Rules that have the policy look into every message; whether one applies changes nothing."""

AT_ALICE = {"default.toml": 'levels = ["aes"]\n'} | {
    f"bob.example/{name}.toml": f"{text}\n{RULES if name == 'enhanced' else ''}" for name, (text, _) in LEVELS.items()
}
AT_BOB = {
    "default.toml": 'levels = ["aes"]\n',
    "alice.example.toml": 'levels = ["aes"]\nrequire = "sealed"\nunprotected = "mark"\n',
}
LINK = LinkSettings(key_rate=1e9, stored_key_limit=10_000_000)
"""Keys enough for 100 MB of one-time pad."""
UNPROTECTED = b"X-QuMail-Protection: none; required=sealed\r\n"
"""What Bob's policy puts on top of what says that it is from Alice and is not sealed."""
CONNECTIONS = 4
RECIPIENTS = tuple(f"{level}@bob.example" for level in LEVELS)
CASES = {case.name: case for case in corpus()}
SAMPLE = {name: case for number, (name, case) in enumerate(CASES.items()) if number % 10 == 0}
"""Of each kind some, for two workers; `pytest --workers 2` has all."""


class Client:
    """One connection that submits message after message, dots stuffed and nothing else changed."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: str) -> None:
        self._reader, self._writer, self._lmtp = reader, writer, protocol == "lmtp"

    async def greet(self) -> None:
        assert (await self._reply()).startswith("220")
        self._writer.write(b"LHLO client.example\r\n" if self._lmtp else b"EHLO client.example\r\n")
        assert (await self._reply()).startswith("250")

    async def submit(self, sender: str, recipients: Sequence[str], message: bytes) -> list[str]:
        """The replies to the end of the content: one, or by LMTP one for each recipient."""
        commands = [f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{each}>" for each in recipients), "DATA"]
        self._writer.write("".join(f"{command}\r\n" for command in commands).encode())
        replies = [await self._reply() for _ in commands]
        assert [reply[:3] for reply in replies] == ["250"] * (1 + len(recipients)) + ["354"], replies
        self._writer.write(b"".join(stuffed(message)))
        return [await self._reply() for _ in (recipients if self._lmtp else [sender])]

    async def _reply(self) -> str:
        """The next reply, all its lines."""
        lines = [(await self._reader.readline()).decode()]
        while lines[-1][3:4] == "-":
            lines.append((await self._reader.readline()).decode())
        return "".join(lines)


@asynccontextmanager
async def connected(address: TCPAddress, protocol: str) -> AsyncIterator[Client]:
    """A client that has been greeted."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        client = Client(reader, writer, protocol)
        await client.greet()
        yield client
    finally:
        writer.close()
        await writer.wait_closed()


async def submit_all(
    cases: Mapping[str, Case], address: TCPAddress, protocol: str, domain: str, recipients: Sequence[str]
) -> list[str]:
    """Submits these cases over a few connections, from its name in this domain; what is wrong with the replies."""

    async def some(queue: Iterator[Case]) -> list[str]:
        wrong: list[str] = []
        async with connected(address, protocol) as client:
            for case in queue:
                replies = await client.submit(f"{case.name}@{domain}", recipients, case.message)
                expected = "250 2" if case.arrives is not None else f"5[0-9]{{2}} (?:{case.refusal})"
                wrong += [f"{case.name}: {reply}" for reply in replies if not re.match(expected, reply)]
        return wrong

    queue = iter(cases.values())  # shared: each connection takes the next one
    return [each for wrong in await asyncio.gather(*(some(queue) for _ in range(CONNECTIONS))) for each in wrong]


@dataclass(frozen=True)
class Place:
    """Every entry's address by its name, where all mail comes out, and Bob's relay.toml."""

    addresses: dict[str, TCPAddress]
    sink: ExactSink
    at_bob: Path

    def entry(self, direction: str, protocol: str) -> TCPAddress:
        return self.addresses[direction if protocol == "smtp" else f"{direction}_lmtp"]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory, identities: Identities) -> AsyncIterator[Place]:
    """As all tests here but one use it."""
    async with _place(tmp_path_factory.mktemp("corpus"), identities) as place:
        yield place


@asynccontextmanager
async def _place(directory: Path, identities: Identities, workers: int = 1) -> AsyncIterator[Place]:
    """Alice's and Bob's relay, each a process of its own; what goes in at Alice's comes out at the sink."""
    async with AsyncExitStack() as stack:
        kmes = await stack.enter_async_context(
            DevelopmentKMEs(state_dir=directory / "kme", host="127.0.0.1", ports=(0, 0), link=LINK)
        )
        sink = await stack.enter_async_context(ExactSink())
        bob = make_site(
            directory / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address,
            policies=AT_BOB, identities=identities, settings='lmtp = "127.0.0.1:0"',
        )  # fmt: skip
        bob.set_workers(workers)
        incoming = (await stack.enter_async_context(relay_process(bob))).addresses
        alice = make_site(
            directory / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=incoming["incoming"],
            policies=AT_ALICE, identities=identities, settings='lmtp = "127.0.0.1:0"',
        )  # fmt: skip
        alice.set_workers(workers)
        outgoing = (await stack.enter_async_context(relay_process(alice))).addresses
        yield Place(incoming | outgoing, sink, bob.config_file)


async def test_the_corpus_is_large_and_the_same_each_time() -> None:
    assert len(CASES) >= 150
    assert list(corpus()) == list(CASES.values())  # and so no two have one name


@pytest.mark.parametrize(("protocol", "recipients"), [("smtp", RECIPIENTS), ("lmtp", RECIPIENTS[1:2])])
async def test_every_message_is_sealed_at_every_level_and_arrives_as_it_was_or_is_refused_with_the_reason(
    place: Place, protocol: str, recipients: Sequence[str]
) -> None:
    """By LMTP at one level alone: what differs there is the conversation.

    In the suite all levels take every eighth one, and that level the others.
    """
    every = sized(8, 1)
    chosen = {
        name: case
        for number, (name, case) in enumerate(CASES.items())
        if every == 1 or (number % every == 0) == (len(recipients) > 1)
    }
    await _sealed_and_opened(place, chosen, protocol, recipients)


async def _sealed_and_opened(place: Place, cases: Mapping[str, Case], protocol: str, recipients: Sequence[str]) -> None:
    """These cases in at Alice's, and out at Bob's."""
    place.sink.arrived.clear()
    assert not await submit_all(cases, place.entry("outgoing", protocol), protocol, "alice.example", recipients)
    missing = {(name, to) for name, case in cases.items() if case.arrives is not None for to in recipients}
    for mail in place.sink.arrived:
        name, [recipient] = mail.sender.removesuffix("@alice.example"), mail.recipients
        missing.remove((name, recipient))
        mark, original = mail.opened
        assert original == CASES[name].arrives, name
        protection, _, author = mark.rpartition("; author=")
        assert protection == f"{LEVELS[recipient.removesuffix('@bob.example')][1]}; peer=alice", name
        assert author in ("peer", "other"), name
    assert not missing


@pytest.mark.parametrize("protocol", ["smtp", "lmtp"])
async def test_every_message_that_comes_unsealed_is_passed_on_as_it_was_or_is_refused_with_the_reason(
    place: Place, protocol: str
) -> None:
    await _passed_on(place, CASES, protocol)


async def test_two_workers_carry_what_one_process_does(tmp_path: Path, identities: Identities) -> None:
    async with _place(tmp_path, identities, workers=2) as place:
        await _sealed_and_opened(place, SAMPLE, "smtp", RECIPIENTS)
        await _sealed_and_opened(place, SAMPLE, "lmtp", RECIPIENTS[1:2])
        await _passed_on(place, SAMPLE, "smtp")


async def _passed_on(place: Place, cases: Mapping[str, Case], protocol: str) -> None:
    """These cases in and out at Bob's, from somebody who seals nothing."""
    place.sink.arrived.clear()
    assert not await submit_all(
        cases, place.entry("incoming", protocol), protocol, "stranger.example", ["ben@bob.example"]
    )
    missing = {name for name, case in cases.items() if case.arrives is not None}
    for mail in place.sink.arrived:
        name = mail.sender.removesuffix("@stranger.example")
        missing.remove(name)
        trace = re.match(rb"Received: [^\r\n]*\r\n(?:\t[^\r\n]*\r\n)*", mail.message)
        assert trace is not None, name
        passed_on = unproven(mail.message[trace.end() :]).removeprefix(UNPROTECTED)
        message = CASES[name].message
        assert passed_on == (message if message.endswith(b"\r\n") or not message else message + b"\r\n"), name
    assert not missing


async def test_what_cannot_be_carried_is_put_aside_after_opening_too_should_a_peer_have_sealed_it(
    place: Place, identities: Identities
) -> None:
    """Without a word to who sent it: the answer would tell that the seal is right."""
    place.sink.arrived.clear()
    uncarriable = [case for case in CASES.values() if case.arrives is None]
    async with connected(place.entry("incoming", "smtp"), "smtp") as client:
        for case in uncarriable:
            sealed = await PQC().seal(payload(case.message, "pqc"), identities.to_bob(), MemoryKeys())
            message = mime.sealed_message(b"From: ann@alice.example\r\n", sealed.der)
            [reply] = await client.submit("ann@alice.example", ["ben@bob.example"], message)
            assert reply.startswith("250 2"), (case.name, reply)
    assert not place.sink.arrived
    status, _, listed = await run("quarantine", "list", "--config", place.at_bob, "--json")
    assert status == 0
    kept = json.loads(listed)
    assert [each["reason"] for each in kept] == ["unknown-format"] * len(uncarriable)


async def test_the_corpus_is_written_out_for_people(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.system.corpus", str(tmp_path / "new")]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith(f"{len(CASES)} messages in")
    assert all((tmp_path / "new" / f"{case.name}.eml").read_bytes() == case.message for case in CASES.values())
    assert "bare-lf-dot-crlf: refused: 5.6.0" in (tmp_path / "new" / "expected.txt").read_text()
