"""The milter packet by packet: what it negotiates, what it answers, and what it makes of packets that are none.
Standard: milter protocol 6; a mail is replaced whole or held, and one bad connection does not harm another.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import miltertest
import pytest
import structlog
from hypothesis import given, strategies as st
from kilter.protocol import ActionFlags, AddHeader, Header, Negotiate, ProtocolFlags
from kilter.protocol.buffer import SimpleBuffer
from kilter.protocol.core import FilterMessage
from structlog.testing import LogCapture

from relay.config import ListenerSettings, TCPAddress
from relay.entry.budget import Budget
from relay.entry.listening import SocketServer, address_of, bound
from relay.entry.milter import session
from relay.entry.milter.edits import can_be_edited, message_of
from relay.entry.milter.wire import PACKETS_AT_ONCE, Packets
from relay.errors import ConfigError, KMEExhausted, PolicyRefuses, RelayError
from relay.formats import mime
from relay.mail import InPlace, Mail
from tests.integration.entry.milter.mta import MTA, OFFERED, Answer, Field, in_thread

FIELDS: list[Field] = [
    ("Received", " from here\n\tby there"),
    ("From", " Ann <ann@alice.example>"),
    ("Subject", "no blank\n  folded \n\twith tab"),
    ("X-Same", " 1"),
    ("x-same", "  2"),
]
BODY = "Grüße\r\n.\r\n\r\nend\r\n"
MESSAGE = message_of([(name, value.encode()) for name, value in FIELDS], BODY.encode())
OTHER = b"From: Ann <ann@alice.example>\r\nSubject: [...]\r\nX-Same: 3\r\n\r\nother\r\n"


@dataclass
class Recipe:
    """Remembers each mail and says what it is told to."""

    makes: Callable[[Mail], InPlace] = lambda mail: InPlace(
        (None,) * len(mail.envelope.recipients), mail.message, mail.envelope.addresses
    )
    refuses: dict[str, RelayError] = field(default_factory=dict)
    gate: asyncio.Event | None = None
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    got: list[Mail] = field(default_factory=list)
    fitted: list[bool] = field(default_factory=list)

    def check_recipient(self, sender: str, recipient: str) -> None:
        if error := self.refuses.get(recipient):
            raise error

    def not_taken(self, mail: Mail, errors: Mapping[str, RelayError]) -> None:
        """Their transaction is over."""

    async def in_place(self, mail: Mail, fits: Callable[[bytes], bool]) -> InPlace:
        self.got.append(mail)
        self.reached.set()
        if self.gate is not None:
            await self.gate.wait()
        made = self.makes(mail)
        if made.message is not None:
            self.fitted.append(fits(made.message))
        return made


def other(mail: Mail) -> InPlace:
    return InPlace((None,) * len(mail.envelope.recipients), OTHER, mail.envelope.addresses)


def failing(error: Exception) -> Callable[[Mail], InPlace]:
    def makes(mail: Mail) -> InPlace:
        raise error

    return makes


@dataclass
class Running:
    entry: SocketServer
    address: TCPAddress
    recipe: Recipe
    budget: Budget

    async def mail(self, **how: object) -> Answer:
        """One mail over a connection of its own."""

        def whole() -> Answer:
            mta = MTA(self.address)
            mta.negotiate()
            answer = mta.mail(FIELDS, BODY, **how)  # type: ignore[arg-type]
            mta.close()
            return answer

        answer = await in_thread(whole)
        assert isinstance(answer, Answer)
        return answer

    async def begun(self) -> MTA:
        """A connection over which one whole mail was handed, whose answer nobody has read."""

        def whole() -> MTA:
            mta = MTA(self.address)
            mta.negotiate()
            mta.connection.send(miltertest.SMFIC_MAIL, args=["<ann@alice.example>"])
            mta.connection.send(miltertest.SMFIC_RCPT, args=["<ben@bob.example>"])
            mta.content(FIELDS, BODY)
            mta.connection._send(miltertest.SMFIC_BODYEOB)
            return mta

        mta = await in_thread(whole)
        assert isinstance(mta, MTA)
        return mta


@asynccontextmanager
async def milter(recipe: Recipe, budget: int = 2**30, **settings: object) -> AsyncIterator[Running]:
    room = Budget(budget, 0.05)
    entry = SocketServer(ListenerSettings.model_validate(settings), room)
    sockets = await bound("outgoing.milter", TCPAddress("127.0.0.1", 0))
    await entry.listen(sockets, partial(session.milter_connection, entry, recipe))
    try:
        yield Running(entry, address_of(sockets), recipe, room)
    finally:
        MTA.close_all()
        await entry.stop(1)


async def test_it_negotiates_only_what_it_needs() -> None:
    async with milter(Recipe()) as running:
        actions, flags = await in_thread(lambda: MTA(running.address).negotiate())
    assert actions == (
        miltertest.SMFIF_ADDHDRS | miltertest.SMFIF_CHGHDRS | miltertest.SMFIF_CHGBODY | miltertest.SMFIF_DELRCPT
    )
    assert flags & miltertest.SMFIP_HDR_LEADSPC
    assert flags & miltertest.SMFIP_NR_HDR
    assert not flags & (miltertest.SMFIP_NOBODY | miltertest.SMFIP_NOHDRS | miltertest.SMFIP_NORCPT)


async def test_a_mail_server_that_would_change_header_fields_gets_no_answer() -> None:
    def try_it(address: TCPAddress) -> bool:
        mta = MTA(address, OFFERED & ~miltertest.SMFIP_HDR_LEADSPC)
        with pytest.raises(miltertest.MilterError):
            mta.negotiate()
        return mta.is_closed()

    async with milter(Recipe()) as running:
        assert await in_thread(try_it, running.address)


async def test_a_mail_server_that_waits_for_each_answer_gets_them() -> None:
    def try_it(address: TCPAddress) -> Answer:
        mta = MTA(address, miltertest.SMFIP_HDR_LEADSPC)
        mta.negotiate()
        send = mta.connection.send
        send(miltertest.SMFIC_CONNECT, hostname="client.example", family="4", port=25, address="192.0.2.1")
        send(miltertest.SMFIC_HELO, helo="client.example")
        send(miltertest.SMFIC_MAIL, args=["<ann@alice.example>"])
        send(miltertest.SMFIC_RCPT, args=["<ben@bob.example>"])
        send(miltertest.SMFIC_DATA)
        mta.connection.send_headers(FIELDS)
        send(miltertest.SMFIC_EOH)
        mta.connection.send_body(BODY)
        return mta.end()

    async with milter(Recipe(other)) as running:
        answer = await in_thread(try_it, running.address)
    assert answer.word == miltertest.SMFIR_ACCEPT
    assert answer.applied(FIELDS, BODY) == OTHER


async def test_the_recipe_gets_the_mail_octet_for_octet_and_where_it_came_from() -> None:
    async with milter(Recipe()) as running:
        answer = await running.mail()
    [mail] = running.recipe.got
    assert mail.message == MESSAGE
    assert (mail.envelope.sender, mail.envelope.addresses) == ("ann@alice.example", ("ben@bob.example",))
    assert (mail.origin.addr, mail.origin.user, mail.origin.ident) == ("192.0.2.7", "ann", "4XyZ")
    assert (answer.word, answer.edits) == (miltertest.SMFIR_ACCEPT, [])


async def test_what_the_recipe_makes_takes_the_place_of_the_mail() -> None:
    async with milter(Recipe(other)) as running:
        answer = await running.mail()
    assert answer.word == miltertest.SMFIR_ACCEPT
    assert answer.applied(FIELDS, BODY) == OTHER


async def test_trace_fields_stay_on_top_of_what_was_opened() -> None:
    def opened(mail: Mail) -> InPlace:
        return InPlace((None,), OTHER, mail.envelope.addresses, opened=True)

    async with milter(Recipe(opened)) as running:
        answer = await running.mail()
    assert answer.applied(FIELDS, BODY) == b"Received: from here\r\n\tby there\r\n" + OTHER


async def test_a_large_body_comes_in_pieces() -> None:
    body = "line\r\n" * 100_000
    message = b"A: b\r\n\r\n" + body.encode()
    async with milter(Recipe(lambda mail: InPlace((None,), message, mail.envelope.addresses))) as running:
        answer = await running.mail()
    assert answer.applied(FIELDS, BODY) == message
    assert max(len(args["buf"]) for word, args in answer.edits if word == miltertest.SMFIR_REPLBODY) <= 65_535


async def test_recipients_who_have_theirs_another_way_are_removed() -> None:
    def some(mail: Mail) -> InPlace:
        return InPlace((None, None, None), mail.message, ("b@x.example",))

    async with milter(Recipe(some)) as running:
        answer = await running.mail(recipients=["<a@x.example>", "<b@x.example>", "<c@x.example>"])
    assert answer.removed() == ["<a@x.example>", "<c@x.example>"]
    assert answer.word == miltertest.SMFIR_ACCEPT


async def test_a_mail_that_was_kept_elsewhere_is_dropped_by_the_mail_server() -> None:
    async with milter(Recipe(lambda mail: InPlace((None,)))) as running:
        assert (await running.mail()).word == miltertest.SMFIR_DISCARD


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KMEExhausted("secret cause"), "451 4.7.5 Encryption key not available, try again later"),
        (PolicyRefuses("secret cause"), "550 5.7.1 No permitted protection for this recipient"),
        (RuntimeError("secret cause"), "451 4.3.0 Temporary failure, try again later"),
    ],
)
async def test_what_fails_is_held_or_refused_and_the_cause_stays_here(error: Exception, text: str) -> None:
    async with milter(Recipe(failing(error))) as running:
        answer = await running.mail()
    assert (answer.word, answer.text, answer.edits) == (miltertest.SMFIR_REPLYCODE, text, [])


async def test_one_recipient_who_has_to_wait_keeps_the_mail_whole() -> None:
    async with milter(Recipe(lambda mail: InPlace((None, KMEExhausted("none")), OTHER, ()))) as running:
        answer = await running.mail(recipients=["<a@x.example>", "<b@x.example>"])
    assert (answer.text[:3], answer.edits) == ("451", [])


async def test_a_recipient_that_policy_refuses_is_refused_at_once_and_the_log_names_the_mail() -> None:
    recipe, log = Recipe(refuses={"b@x.example": PolicyRefuses("no")}), LogCapture()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, log])
    async with milter(recipe) as running:
        answer = await running.mail(recipients=["<b@x.example>"])
    assert answer.text == "550 5.7.1 No permitted protection for this recipient"
    assert not recipe.got
    [refused] = [entry for entry in log.entries if entry["event"] == "recipient_not_accepted"]
    assert (refused["sender"], refused["queue_id"], refused["user"]) == ("ann@alice.example", "4XyZ", "ann")
    assert len(refused["mail"]) == 12


async def test_a_connection_carries_many_mails_and_aborts_between_them() -> None:
    def try_it(address: TCPAddress) -> list[str]:
        mta = MTA(address)
        mta.negotiate()
        words = []
        for _ in range(3):
            mta.connection.send(miltertest.SMFIC_MAIL, args=["<x@alice.example>"])
            mta.content(FIELDS, "aborted\r\n")
            mta.abort()
            mta.abort()
            words.append(mta.mail(FIELDS, BODY).word)
        return words

    async with milter(Recipe()) as running:
        assert await in_thread(try_it, running.address) == [miltertest.SMFIR_ACCEPT] * 3
    assert [mail.message for mail in running.recipe.got] == [MESSAGE] * 3


def packet(command: bytes, data: bytes = b"") -> bytes:
    return (len(data) + 1).to_bytes(4) + command + data


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param((0).to_bytes(4), id="no length"),
        pytest.param((2**31).to_bytes(4) + b"B", id="two gigabytes"),
        pytest.param(packet(b"?"), id="unknown command"),
        pytest.param(packet(b"B", b"body"), id="body outside of a mail"),
        pytest.param(packet(b"L", b"Subject\0 x\0"), id="header outside of a mail"),
        pytest.param(packet(b"E"), id="end outside of a mail"),
        pytest.param(packet(b"M"), id="no sender"),
        pytest.param(packet(b"M", b"<ann@alice.example>"), id="sender without its end"),
        pytest.param(packet(b"M", b"<a@b.example>\0") + packet(b"L", b"Subject\0"), id="header without value"),
        pytest.param(packet(b"M", b"<a@b.example>\0") + packet(b"L", b"a\0b\0c\0"), id="header with more"),
        pytest.param(packet(b"M", b"<a@b.example>\0") + packet(b"L", b"\xffa\0b\0"), id="header name of other octets"),
        pytest.param(packet(b"O", b"\0\0"), id="a short negotiation"),
        pytest.param(packet(b"c"), id="an answer instead of a question"),
        pytest.param(b"\0\0\0\x10M<ann", id="a packet that never ends"),
    ],
)
async def test_packets_that_are_none_end_the_connection_and_only_that(octets: bytes) -> None:
    def try_it(address: TCPAddress) -> bool:
        mta = MTA(address)
        mta.negotiate()
        mta.raw(octets)
        mta.finish_sending()
        while not mta.is_closed():
            pass
        return True

    async with milter(Recipe()) as running:
        assert await in_thread(try_it, running.address)
        assert (await running.mail()).word == miltertest.SMFIR_ACCEPT
    assert len(running.recipe.got) == 1


async def test_macros_that_cannot_be_read_do_no_harm() -> None:
    def try_it(address: TCPAddress) -> Answer:
        mta = MTA(address)
        mta.negotiate()
        mta.raw(packet(b"D", b"M{mail_addr}\0\xff\xfe\0"))
        return mta.mail(FIELDS, BODY)

    async with milter(Recipe()) as running:
        assert (await in_thread(try_it, running.address)).word == miltertest.SMFIR_ACCEPT


async def test_ten_thousand_header_fields_pass_and_more_than_there_may_be_are_refused() -> None:
    async def words(number: int) -> str:
        def try_it() -> str:
            mta = MTA(running.address)
            mta.negotiate()
            answer = mta.mail([("X-Many", f" {n}") for n in range(number)], BODY)
            return answer.text or answer.word

        said = await in_thread(try_it)
        assert isinstance(said, str)
        return said

    async with milter(Recipe()) as running:
        assert await words(10_000) == miltertest.SMFIR_ACCEPT
        assert (await words(mime.MAX_HEADER_LINES + 1)).startswith("554 5.6.0 Malformed message: the header")
    assert len(running.recipe.got) == 1


async def test_thousands_of_fields_that_come_and_go_at_once_leave_all_others_their_turn() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    sent: Counter[int] = Counter()

    def many() -> Iterator[FilterMessage]:
        for _ in range(10_000):
            sent[turns] += 1
            yield AddHeader("X-Many", b" 1")

    here, there = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=here)
    listening = asyncio.create_task(in_thread(_read_all, there))
    packets = Packets(reader, writer, 20)
    offer = SimpleBuffer(64)
    Negotiate(6, ActionFlags(OFFERED), ProtocolFlags(OFFERED)).pack(offer)
    reader.feed_data(bytes(offer[:]) + b"\0\0\0\x0bLX-Many\0 1\0" * 10_000 + b"\0\0\0\1E")
    others_turn = asyncio.create_task(others())
    came: Counter[int] = Counter()
    try:
        first = await packets.next(in_content=False)
        assert isinstance(first, Negotiate)
        packets.negotiate(first)
        while isinstance(await packets.next(in_content=True), Header):
            came[turns] += 1
        await packets.send(many())
    finally:
        others_turn.cancel()
        writer.close()
        await listening
    assert came.total() == sent.total() == 10_000
    assert max(came.values()) <= PACKETS_AT_ONCE
    assert max(sent.values()) <= PACKETS_AT_ONCE


async def test_a_mail_server_that_is_gone_without_a_word_is_noticed_between_mails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        _, there = await asyncio.open_connection(*listening.getsockname())
        reader, writer = await asyncio.open_connection(sock=listening.accept()[0])
        Packets(reader, writer, 20)
        assert writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for each in (there, writer):
            each.close()


def _read_all(connection: socket.socket) -> None:
    with connection:
        while connection.recv(65_536):
            pass


async def test_what_is_too_large_is_refused_and_not_kept() -> None:
    async with milter(Recipe(), max_message_size=1000) as running:

        def try_it() -> str:
            mta = MTA(running.address)
            mta.negotiate()
            return mta.mail(FIELDS, "x" * 70 + "\r\n" * 100_000).text

        assert (await in_thread(try_it)) == "552 5.3.4 Message too big"
        assert running.budget.used == 0
        assert (await running.mail()).word == miltertest.SMFIR_ACCEPT


async def test_what_there_is_no_room_for_is_held_and_room_is_given_back() -> None:
    recipe = Recipe(gate=asyncio.Event())
    async with milter(recipe, budget=8_000_000) as running:
        first = asyncio.create_task(running.mail())
        await recipe.reached.wait()

        def try_it() -> str:
            mta = MTA(running.address)
            mta.negotiate()
            return mta.mail(FIELDS, "x\r\n" * 2_000_000).text

        assert (await in_thread(try_it)).startswith("452 4.3.1")
        assert recipe.gate is not None
        recipe.gate.set()
        assert (await first).word == miltertest.SMFIR_ACCEPT
        assert running.budget.used == 0


async def test_a_mail_without_a_recipient_is_held_and_not_thrown_away() -> None:
    recipe = Recipe(makes=lambda mail: InPlace(()))
    async with milter(recipe) as running:
        answer = await running.mail(recipients=())
    assert answer.text.startswith("451 4.3.0")
    assert recipe.got == []


async def test_the_mail_server_hears_that_we_still_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "PROGRESS_S", 0.01)
    recipe = Recipe(gate=asyncio.Event())

    async with milter(recipe) as running:
        mta = await running.begun()
        assert await in_thread(mta.connection._recv) == (miltertest.SMFIR_PROGRESS, {})
        assert recipe.gate is not None
        recipe.gate.set()
        assert (await in_thread(mta.connection.recv))[0] == miltertest.SMFIR_ACCEPT


async def test_a_relay_that_stops_answers_the_mail_in_flight_first() -> None:
    recipe = Recipe(other, gate=asyncio.Event())
    async with milter(recipe) as running:
        idle = await in_thread(MTA, running.address)
        sending = asyncio.create_task(running.mail())
        await recipe.reached.wait()
        stopping = asyncio.create_task(running.entry.stop(20))
        assert await in_thread(idle.is_closed)
        assert recipe.gate is not None
        recipe.gate.set()
        assert (await sending).word == miltertest.SMFIR_ACCEPT
        await stopping


async def test_a_mail_whose_mail_server_is_gone_comes_to_its_end_before_the_relay_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "PROGRESS_S", 0.01)
    recipe = Recipe(gate=asyncio.Event())

    async with milter(recipe) as running:
        mta = await running.begun()
        await recipe.reached.wait()
        mta.close()
        while running.entry.connections:
            await asyncio.sleep(0.01)
        assert running.budget.used > 0, "it still takes memory"
        stopping = asyncio.create_task(running.entry.stop(20))
        await asyncio.sleep(0)
        assert not stopping.done()
        assert recipe.gate is not None
        recipe.gate.set()
        await stopping
        assert recipe.fitted == [True]
        assert running.budget.used == 0


async def test_it_listens_on_a_unix_socket_in_the_place_of_a_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "milter.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    entry = SocketServer(ListenerSettings(), Budget(2**20))
    await entry.listen(await bound("outgoing.milter", path), partial(session.milter_connection, entry, Recipe()))
    assert path.stat().st_mode & 0o777 == 0o660
    with pytest.raises(ConfigError, match=r"incoming\.milter: cannot listen on .*: another process listens"):
        await bound("incoming.milter", path)
    assert await in_thread(lambda: MTA(path).negotiate())
    MTA.close_all()
    await entry.stop(1)


@given(st.binary(max_size=300))
def test_what_can_be_edited_in_edits_is_told_exactly(noise: bytes) -> None:
    message = b"Subject: x\r\n" + noise.replace(b"\n", b"\r\n")
    if not can_be_edited(message):
        return
    header, body = mime.split(message)
    fields = []
    for _, raw in mime.fields(header):
        name, _, value = raw.removesuffix(b"\r\n").partition(b":")
        fields.append((name.decode("ascii"), value.replace(b"\r\n", b"\n")))
    assert message_of(fields, body) == message
