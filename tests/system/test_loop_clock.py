"""No input holds the event loop for 50 ms, or costs threads more than a few times what a plain one of its size costs.
Standard: processor time, three times in a row; through the listeners of running relays, with every setting on that reads mail.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial

import pytest
import pytest_asyncio
import structlog

from relay.config import TCPAddress
from relay.formats import mime
from relay.formats.cms.enveloped import MAX_PAD_KEYS, AuthEnveloped, PadContent, encode_enveloped
from relay.formats.cms.recipients import PadRecipient
from relay.kme import DevelopmentKMEs, LinkSettings
from relay.process import app
from relay.runtime.aio import SMALL_OCTETS
from tests.integration.dkim.test_journey import add_dkim
from tests.integration.test_conversations import (
    ENTRIES,
    LIMITS,
    SCRIPTS,
    Place,
    place as place,  # a fixture
)
from tests.system.corpus import corpus
from tests.system.fuzz import milter
from tests.system.fuzz.milter import packet
from tests.system.fuzz.targets import all_targets, found
from tests.testlib import mails
from tests.testlib.conversation import Player
from tests.testlib.exact_sink import ExactSink
from tests.testlib.hostile import MAKERS
from tests.testlib.long import sized
from tests.testlib.loop_clock import CALLBACK_S, TIMES, Slow, loop_clock, slow
from tests.testlib.sites import make_site
from tests.testlib.speed import slowness
from tests.testlib.submit import submit
from tests.testlib.zone import zone_server
from tests.unit.dkim.conftest import (
    Keys,
    keys as keys,  # a fixture
    pem,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

TARGETS = all_targets()
SIZES = (250_000, 1_000_000)
"""Just under what is worked on beside the loop, and much over it."""
MOST_SEEDS = sized(30, 60)
WITH_RULES = sized(150, 1500)
"""Recipients for each of whom a thousand rules are looked at: two milliseconds each, so six times what the loop has."""
TURNS = sized(15_000, 40_000)
"""Small things of which none may be worked off without a break: several times what 50 ms are enough for."""
FACTOR, SLACK_S = 8.0, 0.3
"""What threads may take: so many times what a plain message takes, and some more."""
RULES = """
[[when]]
subject_tag = ["[secret]", "[vertraulich]"]
levels = ["otp"]

[[when]]
header = ["X-Secret: y*e*s*", "Sensitivity: *confidential*"]
levels = ["otp"]

[[when]]
attachment_name = ["*.docx", "*secret*plan*"]
levels = ["otp"]
"""
MANY_RULES = "".join(
    f'[[when]]\nsubject_tag = ["[secret-{number}]", "[geheim-{number}]"]\nlevels = ["otp"]\n'
    f'[[when]]\nheader = "X-Secret: *{number}*s*"\nlevels = ["otp"]\n'
    for number in range(500)
)  # fmt: skip
POLICIES = {
    "many.example.toml": f'peer = "PEER"\nlevels = ["aes"]\n{MANY_RULES}',
    "default.toml": 'levels = ["aes"]\n' + RULES * 20,
    "alice.example.toml": 'levels = ["aes"]\nrequire = "rsa"\nunprotected = "mark"\n',
}
ALL = 'max_message_size = "20 MiB"\nlmtp = "127.0.0.1:0"\nmilter = "127.0.0.1:0"\n'


@dataclass(frozen=True)
class Listeners:
    """Where mail goes in, by name, and where it comes out: `sealed` is what left Alice, `opened` what left Bob."""

    addresses: Mapping[str, TCPAddress]
    sealed: ExactSink
    opened: ExactSink


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def listeners(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> AsyncIterator[Listeners]:
    """Alice's relay and Bob's, with rules that look inside, requirements, DKIM and ARC."""
    directory = tmp_path_factory.mktemp("listeners")
    async with AsyncExitStack() as stack:
        link = LinkSettings(key_rate=1e9, stored_key_limit=1_000_000)
        kmes = await stack.enter_async_context(
            DevelopmentKMEs(state_dir=directory / "kme", host="127.0.0.1", ports=(0, 0), link=link)
        )
        names = await stack.enter_async_context(zone_server())
        names.texts = {key.name: key.record.encode() for key in keys.all}
        sinks = [await stack.enter_async_context(ExactSink()) for _ in range(2)]
        addresses: dict[str, TCPAddress] = {}
        for owner, sink, direction in (("alice", sinks[0], "outgoing"), ("bob", sinks[1], "incoming")):
            site = make_site(
                directory / owner, owner, state=kmes.state_dir, kme_url=kmes.urls[owner == "bob"], settings=ALL,
                policies={name: text.replace("PEER", "bob" if owner == "alice" else "alice") for name, text in POLICIES.items()},
                outgoing=sink.address if direction == "outgoing" else None,
                incoming=sink.address if direction == "incoming" else None,
            )  # fmt: skip
            add_dkim(site, names, {f"{owner}.example r": pem(keys.rsa)})
            addresses |= await stack.enter_async_context(app.running(site.config))
        yield Listeners(addresses, *sinks)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield


async def through(listeners: Listeners, name: str, message: bytes) -> bytes | None:
    """One message into a listener; what left on the other side, None where it was refused."""
    sink = listeners.sealed if "outgoing" in name else listeners.opened
    sink.arrived.clear()
    await submit(listeners.addresses[name], message)
    return sink.arrived[-1].message if sink.arrived else None


def plain(octets: int) -> bytes:
    """A message of so many octets that costs what its size costs."""
    line = b"The figures are 42 and 43, as they were last year and the year before.\r\n"
    return mails.plain() + line * (octets // len(line))


Way = tuple[str, Callable[[], Awaitable[object]]]


async def ways(listeners: Listeners, message: bytes) -> AsyncIterator[Way]:
    """Everything that is done with a message: sealed, taken as it is, and opened, where it came to that when it was sealed.

    Each is run before the next one is asked for.
    """
    left: list[bytes | None] = []

    async def out() -> None:
        left.append(await through(listeners, "outgoing", message))

    yield "out", out
    yield "in", lambda: through(listeners, "incoming", message)
    sealed = left[-1]
    if sealed is not None and mime.is_sealed(sealed):
        yield "opened", lambda: through(listeners, "incoming", sealed)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def allowed(listeners: Listeners) -> Callable[[str, int], float]:
    """What threads may take for a message of so many octets, by the way it goes."""
    costs: dict[str, list[tuple[int, float]]] = {}
    with loop_clock() as clock:
        for octets in (1000, *SIZES):
            async for way, run in ways(listeners, plain(octets)):
                times = []
                for _ in range(TIMES):
                    clock.reset()
                    await run()
                    times.append(clock.worked)
                costs.setdefault(way, []).append((octets, max(times)))

    def limit(way: str, octets: int) -> float:
        return SLACK_S + FACTOR * max(cost for size, cost in costs[way] if size <= max(octets, 1000))

    return limit


async def slow_ones(
    listeners: Listeners, allowed: Callable[[str, int], float], messages: Mapping[str, bytes]
) -> list[Slow]:
    """Those of the messages that hold the loop or cost too much, each way that they can go."""
    found = []
    with loop_clock() as clock:
        for name, message in messages.items():
            async for way, run in ways(listeners, message):
                if one := await slow(clock, f"{name} ({way}, {len(message)} octets)", run, allowed(way, len(message))):
                    found.append(one)
    return found


@pytest.mark.parametrize("name", MAKERS)
async def test_no_hostile_message_holds_the_loop_or_costs_much(
    name: str, listeners: Listeners, allowed: Callable[[str, int], float]
) -> None:
    """Every fourth kind at the larger size as well: beside the loop most cost what they cost on it."""
    sizes = SIZES if list(MAKERS).index(name) % sized(4, 1) == 0 else SIZES[:1]
    found = await slow_ones(listeners, allowed, {str(size): MAKERS[name](size) for size in sizes})
    assert not found, "\n".join(map(str, found))


async def test_no_message_of_the_corpus_holds_the_loop_or_costs_much(
    listeners: Listeners, allowed: Callable[[str, int], float]
) -> None:
    """Some of them: what is slow is so for kinds of messages, and those are near each other."""
    found = await slow_ones(listeners, allowed, {case.name: case.message for case in list(corpus())[:: sized(24, 1)]})
    assert not found, "\n".join(map(str, found))


seeds_by = functools.cache(lambda make: tuple(make()))
"""Targets that have their seeds from one place have the same ones, also where these are random."""


def inputs_of(target: str) -> dict[str, bytes]:
    """The seeds of a fuzz target, of very many some, and what broke it once, by name."""
    seeds = seeds_by(TARGETS[target].seeds)
    inputs = {f"seed {number}": seeds[number] for number in range(0, len(seeds), 1 + len(seeds) // MOST_SEEDS)}
    return inputs | {path.name: path.read_bytes() for path in found() if path.parent.name == target}


@pytest.mark.parametrize("target", TARGETS)
async def test_no_input_of_a_fuzz_target_sent_as_mail_holds_the_loop_or_costs_much(
    target: str, listeners: Listeners, allowed: Callable[[str, int], float]
) -> None:
    """Also what broke a reader once; what is no message is refused, and that has to be quick as well.

    An input that several targets have is sent for the first of them.
    """
    inputs = await asyncio.to_thread(inputs_of, target)
    for before in itertools.takewhile(lambda name: name != target, TARGETS):
        others = set((await asyncio.to_thread(inputs_of, before)).values())
        inputs = {name: data for name, data in inputs.items() if data not in others}
    slow_inputs = await slow_ones(listeners, allowed, inputs)
    assert not slow_inputs, "\n".join(map(str, slow_inputs))


async def said(address: TCPAddress, octets: bytes) -> None:
    """All of it over one connection, whatever comes back, until the server has closed it."""
    reader, writer = await asyncio.open_connection(*address)
    with suppress(ConnectionError):
        writer.write(octets)
        writer.write_eof()
        while await reader.read(2**16):
            pass
    writer.close()


_MARKS = "\u0327\u0301".encode()
HELLO = b"EHLO client.example\r\n"
BEGIN = HELLO + b"MAIL FROM:<ann@alice.example> SMTPUTF8\r\n"
COMMANDS = {
    "a line without an end": b"x" * 1_000_000,
    "lines that are no commands": HELLO + b"x\r\n" * 30_000,
    "empty lines": b"\r\n" * 100_000,
    "names": (b"EHLO " + b"a." * 240 + b"\r\n") * 200,
    "marks in a recipient": BEGIN + (b"RCPT TO:<b" + _MARKS * 120 + b"@bob.example>\r\n") * 500,
    "marks in a recipient's domain": BEGIN + (b"RCPT TO:<b@b" + _MARKS * 120 + b".example>\r\n") * 500,
    "marks in a sender": HELLO + (b"MAIL FROM:<a" + _MARKS * 200 + b"@alice.example> SMTPUTF8\r\nRSET\r\n") * 100,
    "long lines of marks": BEGIN + (b"RCPT TO:<b@b" + _MARKS * 3000 + b".example>\r\n") * 50,
    "routes": BEGIN + (b"RCPT TO:<" + b"@a," * 100 + b":ben@bob.example>\r\n") * 500,
    "quotes": BEGIN + (b'RCPT TO:<"' + b'\\"' * 200 + b'"@bob.example>\r\n') * 500,
    "parameters": HELLO + (b"MAIL FROM:<ann@alice.example>" + b" A=B" * 200 + b"\r\nRSET\r\n") * 500,
    "parameters that count": BEGIN + (b"RCPT TO:<ben@bob.example> ORCPT=rfc822;" + b"+41" * 150 + b"\r\n") * 500,
    "forwarded": HELLO + (b"XFORWARD NAME=" + b"+41" * 160 + b"\r\n") * 200,
    "recipients": BEGIN + b"".join(b"RCPT TO:<r%d@bob.example>\r\n" % number for number in range(1500)),
    "recipients with rules": BEGIN + b"".join(b"RCPT TO:<r%d@many.example>\r\n" % number for number in range(WITH_RULES)),
    "logins": HELLO + (b"AUTH PLAIN " + b"AGEAYg" * 80 + b"==\r\n") * 500,
}  # fmt: skip


@pytest.mark.parametrize("listener", ["outgoing", "incoming", "outgoing_lmtp"])
async def test_nothing_that_is_said_to_a_listener_holds_the_loop(listener: str, listeners: Listeners) -> None:
    """Pipelined commands are read in turns: many quick ones hold nobody up either."""
    inputs = COMMANDS | {f"smtp seed {number}": seed for number, seed in enumerate(TARGETS["smtp"].seeds())}
    inputs |= {path.name: path.read_bytes() for path in found() if path.parent.name in ("smtp", "lmtp")}
    if listener != "outgoing":  # the same session: what holds the loop there does so here
        inputs = dict(list(inputs.items())[listener == "incoming" :: sized(2, 1)])
    slow_inputs = []
    with loop_clock() as clock:
        for name, octets in inputs.items():
            whole = octets.replace(b"EHLO", b"LHLO") if listener.endswith("lmtp") else octets
            if one := await slow(clock, name, partial(said, listeners.addresses[listener], whole), SLACK_S):
                slow_inputs.append(one)
    assert not slow_inputs, "\n".join(map(str, slow_inputs))


@pytest.mark.parametrize(("domain", "number"), [("bob.example", 1000), ("many.example", WITH_RULES)])
async def test_many_recipients_and_a_thousand_rules_for_each_do_not_hold_the_loop(
    domain: str, number: int, listeners: Listeners
) -> None:
    message = MAKERS["marks in short fields"](200_000).replace(b"X-Secret", b"Subject", 10)
    recipients = [f"r{each}@{domain}" for each in range(number)]
    with loop_clock() as clock:
        for listener in ("outgoing", "incoming"):
            run = partial(submit, listeners.addresses[listener], message, recipients=recipients)
            one = await slow(clock, listener, run, 3.0)
            assert one is None, str(one)


async def test_a_mail_that_names_as_many_keys_as_it_may_does_not_hold_the_loop(listeners: Listeners) -> None:
    """Anybody can write it: group and SAEs are right, and no KME has ever had these keys."""
    names = tuple(f"{number:036d}" for number in range(MAX_PAD_KEYS))
    content = PadContent("2", "1", "alice-bob", 0, names)
    der = encode_enveloped(AuthEnveloped((PadRecipient(),), content, bytes(MAX_PAD_KEYS * 16), bytes(16)))
    header = (
        b"From: ann@alice.example\r\nTo: ben@bob.example\r\nSubject: [...]\r\nMIME-Version: 1.0\r\n"
        b"Content-Type: application/pkcs7-mime; smime-type=authEnveloped-data\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\n"
    )
    message = header + base64.encodebytes(der).replace(b"\n", b"\r\n")
    run = partial(submit, listeners.addresses["incoming"], message, sender="ann@alice.example")
    with loop_clock() as clock:
        one = await slow(clock, "many keys", run, 3.0)
    assert one is None, str(one)


def handed_over(message: bytes) -> bytes:
    """A message as a mail server gives it to a milter."""
    header, _, body = message.partition(b"\r\n\r\n")
    fields = [raw.removesuffix(b"\r\n").partition(b":") for _, raw in mime.fields(header + b"\r\n")]
    lines = [packet(b"L", name + b"\0" + value.replace(b"\r\n", b"\n") + b"\0") for name, _, value in fields]
    pieces = [packet(b"B", body[start : start + 65_535]) for start in range(0, len(body), 65_535)]
    return b"".join([milter.MAIL, milter.RCPT, *lines, packet(b"N"), *pieces, milter.END])


PACKETS = {
    "recipients": milter.MAIL + packet(b"R", b"<ben@bob.example>\0") * 1500 + milter.END,
    "recipients with rules": milter.MAIL + packet(b"R", b"<ben@many.example>\0") * WITH_RULES + milter.END,
    "marks in recipients": milter.MAIL + packet(b"R", b"<b" + _MARKS * 3000 + b"@bob.example>\0") * 50 + milter.END,
    "macros": packet(b"DL" + b"{x}\0y\0" * 10_000) * 20,
    "many macros": packet(b"DLi\0y\0") * TURNS,
    "aborts": packet(b"A") * TURNS,
    "fields": milter.MAIL + milter.RCPT + packet(b"L", b"a\0b\0") * TURNS + milter.END,
    "small pieces": milter.MAIL + milter.RCPT + packet(b"B", b"x") * TURNS + milter.END,
}


@pytest.mark.parametrize("listener", ["outgoing_milter", "incoming_milter"])
async def test_nothing_that_a_mail_server_says_to_the_milter_holds_the_loop(
    listener: str, listeners: Listeners
) -> None:
    inputs = {name: packets for name, packets in PACKETS.items() if listener.startswith("out") or "rules" not in name}
    inputs |= {f"seed {number}": seed.removeprefix(milter.OFFER) for number, seed in enumerate(milter.seeds())}
    makers = list(MAKERS.items())[listener.startswith("out") :: sized(8, 1)]
    inputs |= {name: handed_over(make(250_000)) for name, make in makers}
    inputs |= {case.name: handed_over(case.message) for case in list(corpus())[:: sized(80, 1)]}
    slow_inputs = []
    with loop_clock() as clock:
        for name, octets in inputs.items():
            whole = milter.OFFER + milter.CONNECT + octets + packet(b"Q")
            if one := await slow(clock, name, partial(said, listeners.addresses[listener], whole), SLACK_S):
                slow_inputs.append(one)
    assert not slow_inputs, "\n".join(map(str, slow_inputs))


SCRIPT_CASES = [(script, listener) for script in SCRIPTS for listener in ENTRIES if script.is_for(ENTRIES[listener])]


async def test_no_conversation_holds_the_loop(place: Place) -> None:
    slow_ones = []
    with loop_clock() as clock:
        for script, listener in SCRIPT_CASES:
            direction = "outgoing" if "outgoing" in ENTRIES[listener] else "incoming"
            variables = {
                "EHLO": "LHLO" if "lmtp" in ENTRIES[listener] else "EHLO",
                "LIMIT": str(LIMITS[direction]),
                "HOSTNAME": "relay.alice.example" if direction == "outgoing" else "relay.bob.example",
            }
            run = Player(script, variables, octet_by_octet=False).play
            if one := await slow(clock, f"{script} ({listener})", partial(run, place.addresses[listener]), SLACK_S):
                slow_ones.append(one)
    assert not slow_ones, "\n".join(map(str, slow_ones))


@pytest.mark.parametrize("octets", SIZES)
async def test_what_holds_the_loop_or_a_thread_is_found(
    octets: int, listeners: Listeners, allowed: Callable[[str, int], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the way out so little is allowed that what is planted need not take long."""
    little = 0.1
    much = 2 * slowness() * (CALLBACK_S if octets <= SMALL_OCTETS else little)

    def limit(way: str, octets: int) -> float:
        return little if way == "out" else allowed(way, octets)

    def slow_work(message: bytes) -> bytes:
        began = time.thread_time()
        while time.thread_time() - began < much:
            pass
        return message

    monkeypatch.setattr(mime, "without_hidden_fields", slow_work)
    [one] = await slow_ones(listeners, limit, {"planted": plain(octets)})
    assert "planted (out" in one.name
    assert (one.callback > CALLBACK_S) == (octets <= SMALL_OCTETS)
    assert one.callback <= CALLBACK_S or one.where
