"""What holds of every listener in config/listeners.py: it brings in one mail, and keeps to what all listeners owe.
Standard: relay/entry/__init__.py and relay/ADDING.md; what a new listener leaves out is named here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import LogCapture

import tests.integration.entry
from relay.config import TCPAddress
from relay.config.listeners import LISTENERS
from relay.counting import metrics
from relay.counting.board import Board
from relay.counting.metric import Metric
from relay.entry import listening
from relay.entry.budget import Budget, room_for
from relay.entry.listening import ClientConnection, SocketServer
from relay.entry.outgoing_router import OutgoingRouter
from relay.entry.transaction import Transaction
from relay.formats import mime
from relay.incoming import Incoming
from relay.kme import DevelopmentKMEs
from relay.mail import InPlace, Mail
from relay.process import assembly
from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.sites import POLICIES, Site, make_site, serving

HERE = Path(tests.integration.entry.__file__).parent
TABLES = {"submission", "imap"}
"""Settings that are tables of their own, and need a server elsewhere: their own folders test them."""
SETTINGS = [(name, setting) for name, settings in LISTENERS.items() for setting in settings if setting not in TABLES]
MAX_RECIPIENTS, MAX_KIB = 2, 16
pytestmark = pytest.mark.in_process


@dataclass
class Seen:
    """What the listener has called, and what was wrong at that moment."""

    mails: list[Mail] = field(default_factory=list)
    in_place: bool = False
    replaced: list[InPlace] = field(default_factory=list)
    said: list[tuple[str, str]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    not_taken: list[str] = field(default_factory=list)
    faults: set[str] = field(default_factory=set)
    servers: set[SocketServer] = field(default_factory=set)
    stopped: set[SocketServer] = field(default_factory=set)
    clients: set[str] = field(default_factory=set)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    budgets: set[Budget] = field(default_factory=set)
    completed: list[Mail] = field(default_factory=list)
    rejected: list[tuple[str, ...]] = field(default_factory=list)

    def empty(self) -> bool:
        """Whether no client is connected."""
        return not any(server.connections for server in self.servers)

    def mail(self, mail: Mail) -> None:
        """A recipe gets one; not one that another recipe passes on."""
        if mail.id in {each.id for each in self.mails}:
            return
        self.mails.append(mail)
        if not any(mail is each for each in self.completed):
            self.faults.add("not from Transaction.complete: an address may have a line end in it")
        if self.empty():
            self.faults.add("SocketServer.add was not called: connections have no limit")
        if any(each.idle.is_set() for server in self.servers for each in server.connections):
            self.faults.add("`idle` is set while a mail is in flight: a relay that stops would cut it off")
        if asyncio.current_task() not in self.tasks:
            self.faults.add(
                "not in SocketServer.run: a client that leaves ends the delivery (use SocketServer.deliver)"
            )
        if not any(budget.used >= room_for(len(mail.message)) for budget in self.budgets):
            self.faults.add("no room is held in the budget while the mail is under way")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen()
    add, run = SocketServer.add, SocketServer.run

    def added(self: SocketServer, connection: ClientConnection, client: str) -> str:
        found.servers.add(self)
        found.clients.add(client)
        return add(self, connection, client)

    stop = SocketServer.stop

    async def stopped(self: SocketServer, *args: Any) -> None:
        found.stopped.add(self)
        await stop(self, *args)

    def ran(self: SocketServer, delivery: Any) -> asyncio.Task[Any]:
        task = run(self, delivery)
        found.tasks.add(task)
        return task

    init = Budget.__init__

    def made(self: Budget, *args: Any, **settings: Any) -> None:
        init(self, *args, **settings)
        found.budgets.add(self)

    count = Board.add

    def counted(self: Board, name: Metric, *labels: str, by: float = 1.0) -> None:
        if name == metrics.REJECTIONS:
            found.rejected.append(labels)
        count(self, name, *labels, by=by)

    complete = Transaction.complete

    def completed(self: Transaction, *args: Any, **named: Any) -> Mail:
        found.completed.append(complete(self, *args, **named))
        return found.completed[-1]

    monkeypatch.setattr(Board, "add", counted)
    monkeypatch.setattr(Transaction, "complete", completed)
    monkeypatch.setattr(SocketServer, "add", added)
    monkeypatch.setattr(SocketServer, "stop", stopped)
    monkeypatch.setattr(SocketServer, "run", ran)
    monkeypatch.setattr(Budget, "__init__", made)
    for recipe in (OutgoingRouter, Incoming):
        _watch(monkeypatch, recipe, found)
    return found


def _watch(monkeypatch: pytest.MonkeyPatch, recipe: type[OutgoingRouter | Incoming], found: Seen) -> None:
    process, in_place = recipe.process, recipe.in_place
    answered, client_gone = recipe.client_answered, recipe.client_gone
    check_recipient, not_taken = recipe.check_recipient, recipe.not_taken

    def checked(self: Any, sender: str, recipient: str) -> None:
        found.asked.append(recipient)
        check_recipient(self, sender, recipient)

    def was_not_taken(self: Any, mail: Mail, errors: Any) -> None:
        found.not_taken.extend(errors)
        not_taken(self, mail, errors)

    async def processed(self: Any, mail: Mail) -> Any:
        found.mail(mail)
        return await process(self, mail)

    async def kept(self: Any, mail: Mail, fits: Callable[[bytes], bool]) -> Any:
        found.in_place = True
        found.mail(mail)
        found.replaced.append(await in_place(self, mail, fits))
        return found.replaced[-1]

    def was_heard(self: Any, mail: Mail) -> None:
        found.said.append((mail.id, "client_answered"))
        answered(self, mail)

    async def was_gone(self: Any, mail: Mail, outcomes: Any) -> None:
        found.said.append((mail.id, "client_gone"))
        await client_gone(self, mail, outcomes)

    monkeypatch.setattr(recipe, "process", processed)
    monkeypatch.setattr(recipe, "in_place", kept)
    monkeypatch.setattr(recipe, "check_recipient", checked)
    monkeypatch.setattr(recipe, "not_taken", was_not_taken)
    monkeypatch.setattr(recipe, "client_answered", was_heard)
    monkeypatch.setattr(recipe, "client_gone", was_gone)


async def until(condition: Callable[[], bool], fault: str) -> None:
    """Waits for it, and fails with `fault` where it does not come within 30 s."""
    with named(fault):
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.01)


@contextmanager
def named(fault: str) -> Iterator[None]:
    """Says `fault` where something does not happen in time."""
    try:
        yield
    except TimeoutError:
        pytest.fail(fault)


async def closed(reader: asyncio.StreamReader, fault: str) -> None:
    """Reads until the relay closes the connection."""
    with named(fault):
        async with asyncio.timeout(30):
            with suppress(ConnectionError):
                while await reader.read(1000):
                    pass


def bringing(listener: str) -> Callable[..., Awaitable[list[bool]]]:
    """The function `bring` of the listener's own tests."""
    name = f"{listener}.bringing" if (HERE / listener).is_dir() else f"test_{listener}"
    path = HERE / f"{name.replace('.', '/')}.py"
    assert path.exists(), f"tests/integration/entry/{path.relative_to(HERE)} is missing: it has the tests of {listener}"
    bring = getattr(import_module(f"{tests.integration.entry.__name__}.{name}"), "bring", None)
    assert bring is not None, f"{path.relative_to(HERE)} has no function `bring(setting, address, message, ...)`"

    async def checked(setting: str, address: TCPAddress, message: bytes, sender: str, *recipients: str) -> list[bool]:
        heard = await bring(setting, address, message, sender, list(recipients))
        assert isinstance(heard, list), "`bring` returns whether the client heard that the mail was taken"
        assert len(heard) == len(recipients), "for each recipient"
        return heard

    return checked


class Between:
    """Passes on all that clients and the relay say, and counts what clients have said, in bytes.

    After `cut_after` bytes the client leaves, or is `silent`. With `stay` the relay does not see that it has left.
    """

    def __init__(self, relay: TCPAddress) -> None:
        self.address = relay
        self.passed = 0
        self.cut_after: int | None = None
        self.silent = self.stay = False
        self._relay = relay
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one client."""
        relay_reader, relay_writer = await asyncio.open_connection(*self._relay)
        self._writers += [writer, relay_writer]
        self._tasks += [
            asyncio.create_task(self._forth(reader, relay_writer)),
            asyncio.create_task(self._back(relay_reader, writer)),
        ]

    async def _forth(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(1000):
                passing = piece if self.cut_after is None else piece[: self.cut_after - self.passed]
                writer.write(passing)
                await writer.drain()
                self.passed += len(passing)
                if self.passed == self.cut_after and not self.silent:
                    break
        if not self.stay:
            writer.close()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(1000):
                writer.write(piece)
        writer.close()

    def leave(self) -> None:
        """Ends all connections, as a client does that leaves."""
        for each in self._writers:
            each.close()

    async def end(self) -> None:
        """Returns when all connections are closed."""
        for each in self._writers:
            each.transport.abort()
        await asyncio.gather(*self._tasks, *(each.wait_closed() for each in self._writers), return_exceptions=True)


@asynccontextmanager
async def between(relay: TCPAddress) -> AsyncIterator[Between]:
    """Listens in place of the relay."""
    here = Between(relay)
    server = await asyncio.start_server(here.connected, "127.0.0.1", 0)
    here.address = listening.address_of(server.sockets)
    try:
        yield here
    finally:
        server.close()
        await here.end()
        await server.wait_closed()


@pytest.mark.parametrize("listener", LISTENERS)
def test_each_listener_has_tests_of_its_own(listener: str) -> None:
    assert (HERE / listener).is_dir() or (HERE / f"test_{listener}.py").exists(), "in tests/integration/entry"


def site_with(setting: str, tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, further: str = "") -> Site:
    """Alice's, where mail comes in by this setting alone; the policy refuses recipients at refused.example."""
    direction, _, name = setting.partition(".")
    hops: dict[str, Any] = {direction: wire.address}
    policies = {**POLICIES, "refused.example.toml": 'levels = ["aes"]\notherwise = "refuse"\n'}
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], policies=policies, **hops)
    text = site.config_file.read_text()
    assert 'listen = "127.0.0.1:0"\n' in text
    here = f'{name} = "127.0.0.1:0"\nmax_recipients = {MAX_RECIPIENTS}\nmax_message_size = "{MAX_KIB} KiB"\n{further}'
    site.config_file.write_text(text.replace('listen = "127.0.0.1:0"\n', here))
    return site


def addresses_of(setting: str) -> tuple[str, str, str]:
    """A sender and two recipients."""
    if setting.startswith("outgoing."):
        return "ann@alice.example", "ben@bob.example", "bea@bob.example"
    return "x@other.example", "ann@alice.example", "amy@alice.example"


def address_in(addresses: dict[str, TCPAddress], setting: str) -> TCPAddress:
    name = setting.replace(".", "_").removesuffix("_listen")
    assert name in addresses, f"Listener.start has to return the real address as {name}"
    return addresses[name]


@pytest.mark.parametrize(("listener", "setting"), SETTINGS)
async def test_a_mail_comes_in_and_the_listener_owes_nothing(
    listener: str, setting: str, tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, seen: Seen
) -> None:
    name = setting.partition(".")[2]
    sender, recipient, _ = addresses_of(setting)
    async with serving(site_with(setting, tmp_path, kmes, wire)) as addresses:
        heard = await bringing(listener)(setting, address_in(addresses, setting), mails.plain(), sender, recipient)
        assert heard == [True]
        async with asyncio.timeout(30):
            while any(task for task in seen.tasks if not task.done()):
                await asyncio.wait(seen.tasks)
        await until(seen.empty, "SocketServer.discard was not called: the connection is counted for ever")
    assert seen.servers <= seen.stopped, "SocketServers.servers has not all servers: `stop` leaves connections open"
    [mail] = seen.mails
    assert not seen.faults
    assert mail.listener in (listener, name), "Mail(listener=...): metrics and records name it"
    assert mail.id
    assert mail.message_id == mime.message_id_hash(mail.message), "Mail(message_id=...): the other site's log has it"
    assert mail.origin.addr, "Mail(origin=...): the log names the client"
    assert [address.rstrip() for address in mail.envelope.addresses] == [recipient]
    assert seen.in_place or any(seen.clients), (
        "SocketServer.add(connection, client): a client is counted by its address"
    )
    if not seen.in_place:  # else the mail server has the mail, its trace and its retries
        assert mail.trace.startswith(b"Received: "), "Mail(trace=...): without it a loop is not noticed (RFC 5321 4.4)"
        assert mail.confirmed, "Mail(confirmed=True): a client that is gone gets no second copy"
        assert seen.said == [(mail.id, "client_answered")], (
            "client_answered or client_gone, once (use SocketServer.deliver)"
        )
    assert not any(budget.used for budget in seen.budgets), "the room in the budget is not given back"


@pytest.mark.promise("Marks are ours")
@pytest.mark.parametrize("shadow", ["false", "true"])
@pytest.mark.parametrize(("listener", "setting"), SETTINGS)
async def test_a_colleagues_forged_mark_of_protection_is_taken_off_unsealed_mail(
    listener: str, setting: str, shadow: str, tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, seen: Seen
) -> None:
    site = site_with(setting, tmp_path, kmes, wire)
    site.write_policies({"alice.example.toml": 'levels = ["plaintext"]\n'})
    site.config_file.write_text(
        site.config_file.read_text().replace("[policies]\n", f"[policies]\nshadow = {shadow}\n")
    )
    forged = b"X-QuMail-Protection: otp; peer=bob; author=peer\r\n" + mails.plain()
    async with serving(site) as addresses:
        bring, address = bringing(listener), address_in(addresses, setting)
        assert await bring(setting, address, forged, "ann@alice.example", "amy@alice.example") == [True]
    arrived = seen.replaced[0].message if seen.in_place else wire.got[0].message
    assert arrived is not None
    assert (arrived if seen.in_place else mails.untraced(arrived)) == mails.plain()


@pytest.mark.promise("Forged mail in a peer's name is marked from the day that the peer is taken in")
@pytest.mark.parametrize(
    ("unprotected", "forged"),
    [("mark", "sender"), ("mark", "doubt"), ("quarantine", "author"), ("quarantine", "doubt"), ("refuse", "author")],
)
@pytest.mark.parametrize(("listener", "setting"), SETTINGS)
async def test_unsealed_mail_in_a_peers_name_to_a_user_of_ours_is_treated_as_policy_says(
    listener: str, setting: str, unprotected: str, forged: str,
    tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, seen: Seen, log: LogCapture,
) -> None:  # fmt: skip
    """A second smtpd(8) without the filter for incoming mail hands a stranger's mail to the outgoing listeners."""
    site = site_with(setting, tmp_path, kmes, wire)
    text = site.config_file.read_text()
    if setting.startswith("outgoing."):  # a relay that opens mail, at listeners of its own
        way_in = f'[incoming]\nlisten = "127.0.0.1:0"\nnext_hop = "{wire.address[0]}:{wire.address[1]}"\n\n'
        site.config_file.write_text(text.replace("[policies]\n", way_in + "[policies]\n"))
    site.write_policies({
        "alice.example.toml": 'levels = ["plaintext"]\n',
        "bob.example.toml": f'levels = ["aes"]\nrequire = "sealed"\nunprotected = "{unprotected}"\n',
    })  # fmt: skip
    sender = "ben@bob.example" if forged == "sender" else "x@other.example"
    named = {"sender": b"x@other.example", "author": b"ben@bob.example", "doubt": b'"b <ben@bob.example'}[forged]
    message = b"From: " + named + b"\r\nTo: amy@alice.example\r\nSubject: pay\r\nMessage-ID: <f@x>\r\n\r\nnow\r\n"
    async with serving(site) as addresses:
        bring, address = bringing(listener), address_in(addresses, setting)
        heard = await bring(setting, address, message, sender, "amy@alice.example")
    async with assembly.parts(site.config, prefetch=False) as parts:
        assert len(await parts.store.quarantine.all()) == (unprotected == "quarantine")
    told = [each["event"] for each in log.entries]
    assert told.count("arrived_unprotected") == 1
    assert told.count("came_unsealed_in_a_peers_name") == (forged != "doubt")
    assert "delivered_inside" not in told or unprotected == "mark"
    if unprotected != "mark":
        assert wire.got == []
        assert not any(each.message for each in seen.replaced)
        assert seen.in_place or heard == [unprotected == "quarantine"]
        return
    arrived = seen.replaced[0].message if seen.in_place else mails.untraced(wire.got[0].message)
    assert arrived is not None
    mark, _, rest = arrived.partition(b"\r\n")
    assert mark.startswith(b"X-QuMail-Protection: none; required=sealed")
    assert rest == message


@pytest.mark.parametrize(("listener", "setting"), SETTINGS)
async def test_what_the_next_hop_does_not_take_is_not_answered_as_taken(
    listener: str, setting: str, tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, seen: Seen
) -> None:
    sender, recipient, _ = addresses_of(setting)
    wire.on_data.append("451 4.3.0 not now")
    async with serving(site_with(setting, tmp_path, kmes, wire)) as addresses:
        heard = await bringing(listener)(setting, address_in(addresses, setting), mails.plain(), sender, recipient)
    assert seen.in_place or heard == [False], "the client hears that the mail was taken, which the next hop refused"
    assert not wire.got


@pytest.mark.parametrize(("listener", "setting"), SETTINGS)
async def test_the_client_hears_an_outcome_for_each_recipient_or_one_for_all_as_the_mail_says(
    listener: str, setting: str, tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, seen: Seen
) -> None:
    sender, one, other = addresses_of(setting)
    wire.on_rcpt[other] = "550 5.1.1 nobody here"
    async with serving(site_with(setting, tmp_path, kmes, wire)) as addresses:
        heard = await bringing(listener)(setting, address_in(addresses, setting), mails.plain(), sender, one, other)
    [mail] = seen.mails
    if mail.each_answered:
        assert heard == [True, False], "each_answered=True: the client hears an outcome for each recipient"
    else:
        assert heard in ([False, False], [seen.in_place] * 2), "each_answered=False: one outcome for all"


@pytest.mark.parametrize(("listener", "setting"), SETTINGS)
async def test_what_is_turned_away_before_there_is_a_mail_is_counted(
    listener: str, setting: str, tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, seen: Seen
) -> None:
    direction, _, name = setting.partition(".")
    sender, *two = addresses_of(setting)
    names = {(direction, listener), (direction, name)}
    async with serving(site_with(setting, tmp_path, kmes, wire)) as addresses:

        async def turned_away(message: bytes, *recipients: str) -> set[str]:
            seen.rejected.clear()
            heard = await bringing(listener)(setting, address_in(addresses, setting), message, sender, *recipients)
            assert not all(heard), "the client hears that what is turned away was taken"
            assert {labels[:2] for labels in seen.rejected} <= names, "server_inside(...): direction and listener"
            return {labels[2] for labels in seen.rejected}

        counted = "nothing counts what is not taken: raise it within `with server.counted()`"
        large = mails.plain(body="x\r\n" * MAX_KIB * 1024)
        assert await turned_away(large, two[0]) == {"MessageTooBig"}, counted
        assert await turned_away(mails.plain(), *two, "third@refused.example") == {"TooManyRecipients"}, counted
        for budget in seen.budgets:
            budget.used, budget.patience = budget.size, 0.0
        assert await turned_away(mails.plain(), two[0]) == {"Overloaded"}, counted
        for budget in seen.budgets:
            budget.used = 0


@pytest.mark.parametrize(("listener", "setting"), [each for each in SETTINGS if each[1].startswith("outgoing.")])
async def test_a_recipient_whom_policy_refuses_is_refused_before_there_is_a_mail(
    listener: str, setting: str, tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, seen: Seen
) -> None:
    recipient = "eve@refused.example"
    async with serving(site_with(setting, tmp_path, kmes, wire)) as addresses:
        heard = await bringing(listener)(
            setting, address_in(addresses, setting), mails.plain(), "ann@alice.example", recipient
        )
    assert heard == [False]
    assert seen.asked == [recipient], "recipe.check_recipient was not asked"
    assert seen.not_taken == [recipient], "recipe.not_taken was not told: nothing counts or records who was refused"
    assert not seen.mails


@pytest.mark.parametrize(("listener", "setting"), SETTINGS)
async def test_connections_have_a_limit_and_end_when_idle_or_when_the_relay_leaves(
    listener: str, setting: str, tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, seen: Seen, monkeypatch: Any
) -> None:
    monkeypatch.setattr(listening, "LEAVE_S", 0.0)
    site = site_with(setting, tmp_path, kmes, wire, "connections = 1\n")
    async with serving(site) as addresses, AsyncExitStack() as clients:

        async def connected() -> asyncio.StreamReader:
            reader, writer = await asyncio.open_connection(*address_in(addresses, setting))
            clients.callback(writer.close)
            return reader

        first = await connected()
        await until(lambda: not seen.empty(), "SocketServer.add was not called: connections have no limit")
        await closed(await connected(), "SocketServer.add has said why the connection cannot stay, and it stays")
        [server] = seen.servers
        with named("close_when_idle does not close a connection without a mail: `retire` waits for ever"):
            async with asyncio.timeout(30):
                await server.retire()
        await closed(first, "close_when_idle, then SocketServer.discard, and the connection is still open")


@pytest.mark.parametrize(("listener", "setting"), SETTINGS)
async def test_a_connection_is_idle_again_after_its_mail(
    listener: str, setting: str, tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, seen: Seen, monkeypatch: Any
) -> None:
    monkeypatch.setattr(listening, "LEAVE_S", 0.0)
    sender, recipient, _ = addresses_of(setting)
    async with (
        serving(site_with(setting, tmp_path, kmes, wire)) as addresses,
        between(address_in(addresses, setting)) as wires,
    ):
        wires.stay = True  # a client that says nothing more
        assert await bringing(listener)(setting, wires.address, mails.plain(), sender, recipient) == [True]
        [server] = seen.servers
        with named("`idle` is not set again after a mail: `retire` waits for ever"):
            async with asyncio.timeout(30):
                await server.retire()


@pytest.mark.parametrize("silent", [False, True], ids=["leaves", "silent"])
@pytest.mark.parametrize(("listener", "setting"), SETTINGS)
async def test_a_client_that_stops_in_the_middle_of_the_content_leaves_nothing_behind(
    listener: str, setting: str, silent: bool, tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, seen: Seen
) -> None:
    sender, recipient, _ = addresses_of(setting)
    message = mails.plain(body="x\r\n" * 3000)
    async with (
        serving(site_with(setting, tmp_path, kmes, wire)) as addresses,
        between(address_in(addresses, setting)) as wires,
    ):
        assert await bringing(listener)(setting, wires.address, message, sender, recipient) == [True]
        await until(seen.empty, "SocketServer.discard was not called: the connection is counted for ever")
        if silent:
            for server in seen.servers:
                server.settings = server.settings.model_copy(update={"timeout": 0.2})
        wires.silent, wires.cut_after, wires.passed = silent, wires.passed - len(message) // 2, 0
        client = asyncio.ensure_future(bringing(listener)(setting, wires.address, message, sender, recipient))
        done, _ = await asyncio.wait([client], timeout=30)
        assert done, "a client that sends no more is waited for without a timeout (server.settings.timeout)"
        heard = [] if client.exception() else client.result()  # a client may say that its connection broke
        assert not any(heard), "a mail of which only half has come was taken"
        assert silent or wires.passed == wires.cut_after
        if silent and any(seen.clients):  # else a mail server, which keeps its connections
            reader, writer = await asyncio.open_connection(*address_in(addresses, setting))
            await closed(
                reader, "a client that sends nothing is waited for without a timeout (server.settings.timeout)"
            )
            writer.close()
        await until(seen.empty, "a client that left, or sends no more, is waited for (server.settings.timeout)")
        assert not any(budget.used for budget in seen.budgets), (
            "the room of a mail whose client left is not given back: share.reduce() where `deliver` was not reached"
        )
    assert len(seen.mails) == 1, "a mail of which only half has come was taken"


@pytest.mark.parametrize(("listener", "setting"), SETTINGS)
async def test_of_a_client_that_is_gone_nobody_says_that_it_heard_the_answer(
    listener: str, setting: str, tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, seen: Seen, monkeypatch: Any
) -> None:
    sender, recipient, _ = addresses_of(setting)
    recipe = OutgoingRouter if setting.startswith("outgoing.") else Incoming
    process = recipe.process
    async with (
        serving(site_with(setting, tmp_path, kmes, wire)) as addresses,
        between(address_in(addresses, setting)) as wires,
    ):

        async def client_leaves(self: Any, mail: Mail) -> Any:
            wires.leave()
            for _ in range(100):  # the loop sees it
                await asyncio.sleep(0)
            return await process(self, mail)

        monkeypatch.setattr(recipe, "process", client_leaves)
        with suppress(Exception):  # what a client says of a connection that has broken
            await bringing(listener)(setting, wires.address, mails.plain(), sender, recipient)
        await until(
            lambda: bool(seen.said) or seen.in_place, "neither heard nor client_gone (use SocketServer.deliver)"
        )
        assert seen.in_place or [what for _, what in seen.said] == ["client_gone"], (
            "`answer` said that the client was there to hear it, and it was gone"
        )
