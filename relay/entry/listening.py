"""Listens for connections: binds addresses before the relay starts, counts connections, and closes them.
Standard: RFC 5321 3.8 (421 at shutdown), 4.5.4.2 (limits), 6.1 (a mail received whole is processed to its end even if
the connection is lost), RFC 1047 (a client that gets no reply sends again); RFC 4291 2.5.4 (a /64 is one client).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog

from relay.config import ListenerSettings, Network, TCPAddress
from relay.counting import metrics
from relay.entry import Inside, Recipe
from relay.entry.budget import Budget, Share
from relay.errors import ConfigError, RelayError, TryLater
from relay.mail import Mail, Outcomes
from relay.runtime.aio import FairQueue, in_background

log = structlog.get_logger(__name__)

BACKLOG = 512
"""Listen backlog: maximum number of connections not accepted yet."""
LEAVE_S = 10.0
"""Time clients have to leave a retiring worker, in seconds."""
WAITS_S, WAITS_AGAIN_S = 60.0, 600.0
"""Seconds until the log reports what a retiring worker waits for, and interval of further reports."""
GRACE_S = 30.0
"""Grace period for mails in flight at shutdown, in seconds."""
PROBE_S = 5.0
ACCEPTED_S = 0.2
SOCKET_MODE = 0o660
"""Mode of a Unix socket; the mail server's user must be in the group of its directory."""

Where = TCPAddress | Path
"""A TCP address or a Unix socket."""
_HOLD_PORTS = "as root: qumail-relay setup --hold-ports, which says what to restart"
"""What to do where systemd holds other ports than those of relay.toml."""
Sockets = Mapping[str, Sequence[socket.socket]]
"""The listening sockets by setting."""
_T = TypeVar("_T")


class ClientConnection(Protocol):
    """A connection as SocketServer needs it; `idle` is set while no mail is in flight."""

    idle: asyncio.Event

    def close_when_idle(self) -> None:
        """Closes now, or after the reply to the mail in flight."""

    def abort(self) -> None:
        """Closes at once; unsent data is lost."""


class ListeningServer(Protocol):
    """An asyncio.Server, or anything that is stopped like one."""

    def close(self) -> None:
        """Accepts no further connection."""

    async def wait_closed(self) -> None:
        """Returns when it is closed."""


class Present(Protocol):
    """Counts by key, in this process or in all processes of a relay."""

    def change(self, key: str, by: int) -> int:
        """Adds `by`, which may be negative; returns the new count."""


class PresentHere:
    """Counts in this process only."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def change(self, key: str, by: int) -> int:
        """As Present.change."""
        self._counts[key] += by
        return self._counts[key] or self._counts.pop(key)


class TooManyConnections(TryLater):
    """All connections of a listener are taken."""


class SocketServer:
    """The server for one table of settings: its connections, and the deliveries that outlive them.

    Clients are IP addresses as text, "" if unknown.
    """

    def __init__(
        self,
        settings: ListenerSettings,
        budget: Budget,
        listener: str = "",
        turned_away: Callable[[RelayError], None] = lambda _: None,
        present: Present | None = None,
        name: str = "",
    ) -> None:
        """`listener` is the name in its mails; `turned_away` is called with each error before there is a mail.

        `present` counts connections, including those of other processes to servers of this `name`.
        """
        self.settings = settings
        self.budget = budget
        self.listener = listener
        self.turned_away = turned_away
        self.connections: dict[ClientConnection, str] = {}
        self.lane = FairQueue()
        self.servers: list[ListeningServer] = []
        self._present = present or PresentHere()
        self._name = name
        self._deliveries: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._empty = asyncio.Event()
        self._empty.set()
        self.trusts = lru_cache(maxsize=1024)(partial(_is_in, settings.trusted))
        """Whether a client is in a trusted network; an unknown one is not."""

    async def listen(self, sockets: Sequence[socket.socket], protocol: Callable[[], asyncio.BaseProtocol]) -> None:
        """Accepts connections at these sockets, each with a new `protocol`."""
        loop = asyncio.get_running_loop()
        for each in sockets:
            create = loop.create_unix_server if each.family == socket.AF_UNIX else loop.create_server
            self.servers.append(await create(protocol, sock=each, backlog=BACKLOG))

    async def retire(self) -> None:
        """Stops accepting; returns when all connections and all mails in flight have ended.

        Connections have LEAVE_S to end. After that each is closed as soon as it has no mail in flight.
        """
        for server in self.servers:
            server.close()
        # A connection accepted in this step is not registered yet.
        await asyncio.sleep(ACCEPTED_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await self._empty.wait()
        for each in list(self.connections):
            each.close_when_idle()
        async with in_background("what is waited for", self._log_waiting):
            await self._empty.wait()
            while self._deliveries:
                await asyncio.wait(self._deliveries)

    async def _log_waiting(self) -> None:
        """Logs what is waited for: no other worker is replaced meanwhile, and a mail may take half an hour."""
        pause = WAITS_S
        while True:
            await asyncio.sleep(pause)
            pause = WAITS_AGAIN_S
            # A connection has at most one mail; the delivery of a client that is gone goes on without one.
            mails = max(len(self.connections), len(self._deliveries))
            log.warning("worker_waits_for_mail", listener=self._name, mails=mails)

    async def stop(self, grace: float = GRACE_S) -> None:
        """Stops accepting, gives mails in flight `grace` seconds, and closes the rest."""
        self._stopping = True
        for server in self.servers:
            server.close()
        busy = [asyncio.create_task(each.idle.wait()) for each in self.connections if not each.idle.is_set()]
        for each in list(self.connections):
            each.close_when_idle()
        loop = asyncio.get_running_loop()
        end = loop.time() + grace
        # Includes mails completed meanwhile.
        while (waited_for := {*(task for task in busy if not task.done()), *self._deliveries}) and (
            left := end - loop.time()
        ) > 0:
            await asyncio.wait(waited_for, timeout=left)
        late = {*busy, *self._deliveries}
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for each in list(self.connections):
            each.abort()
        for server in self.servers:
            await server.wait_closed()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Context manager that counts a RelayError raised before there is a mail."""
        try:
            yield
        except RelayError as error:
            self.turned_away(error)
            raise

    def run(self, delivery: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Starts a task that finishes even if its client disconnects; `stop` waits for it."""
        task = asyncio.create_task(delivery)
        self._deliveries.add(task)
        task.add_done_callback(self._deliveries.discard)
        return task

    def deliver(
        self, recipe: Recipe, mail: Mail, share: Share, answer: Callable[[Outcomes], Awaitable[bool]]
    ) -> asyncio.Task[None]:
        """Starts the delivery of a `confirmed` mail, reply included, and returns the task.

        `answer` sends the outcomes, one for each recipient, and returns whether the client got them; it may raise
        ConnectionError. `share` is the memory that the mail holds; it is released at the end. The caller waits with
        `asyncio.shield`, so that a client that disconnects does not cancel the delivery.
        """
        delivery = self.run(_delivered(recipe, mail, answer))
        delivery.add_done_callback(lambda _: share.reduce())
        return delivery

    def add(self, connection: ClientConnection, client: str) -> str:
        """Registers a connection; returns why it is refused, or ""."""
        network = network_of(client)
        self.connections[connection] = network
        self._empty.clear()
        all_there_are = self._present.change(self._name, 1)
        of_client = self._present.change(f"{self._name} {network}", 1)
        limits = self.settings
        if self._stopping:
            return "it came while the relay stops"
        if all_there_are > limits.connections:
            error = TooManyConnections(f"more than {limits.connections} connections")
            self.turned_away(error)
            return str(error)
        if client and of_client > limits.connections_per_client and not self.trusts(client):
            return f"more than {limits.connections_per_client} connections from this client"
        return ""

    def discard(self, connection: ClientConnection) -> None:
        """Unregisters a connection that has ended."""
        network = self.connections.pop(connection, None)
        if network is not None:
            self._present.change(self._name, -1)
            self._present.change(f"{self._name} {network}", -1)
        if not self.connections:
            self._empty.set()


async def _delivered(recipe: Recipe, mail: Mail, answer: Callable[[Outcomes], Awaitable[bool]]) -> None:
    # The task has one mail only; these are known since its content was received.
    fields = {"message_id": mail.message_id} | ({"queue_id": mail.origin.ident} if mail.origin.ident else {})
    structlog.contextvars.bind_contextvars(**fields)
    done = answered = False
    outcomes: Outcomes = ()
    try:
        try:
            outcomes = await recipe.process(mail)
            done = True
        except Exception as error:  # noqa: BLE001 - unknown errors hold mail
            failure = error if isinstance(error, RelayError) else _unforeseen(error)
            outcomes = (failure,) * len(mail.envelope.recipients)
        with suppress(ConnectionError):
            answered = await answer(outcomes)
    finally:
        # If cancelled before the reply was confirmed, the client counts as gone.
        if answered and done:
            recipe.client_answered(mail)
        elif outcomes:  # else cancelled before there was an outcome
            await _client_gone(recipe, mail, outcomes, answered=answered)


async def _client_gone(recipe: Recipe, mail: Mail, outcomes: Outcomes, *, answered: bool) -> None:
    """The client did not get the outcomes, or `answered`: it got an error although mail may have left."""
    if not answered:
        log.warning("client_gone_before_the_answer", recipients=len(mail.envelope.recipients))
    try:
        await recipe.client_gone(mail, outcomes)
    except Exception as error:  # noqa: BLE001 - the mail has left
        log.error("delivery_not_remembered", cause=str(error), kind=type(error).__name__)


def _unforeseen(error: Exception) -> TryLater:
    """Logs an unexpected error, which holds the mail."""
    log.error("delivery_failed", cause=f"{type(error).__name__}: {error}", exc_info=error)
    return TryLater("unforeseen")


def server_inside(inside: Inside, direction: str, listener: str, settings: ListenerSettings) -> SocketServer:
    """The server of this listener and direction, whose connections and refusals are counted."""

    def turned_away(error: RelayError) -> None:
        inside.board.add(metrics.REJECTIONS, direction, listener, type(error).__name__)

    return SocketServer(settings, inside.budget, listener, turned_away, inside.present, f"{direction}.{listener}")


class SocketServers:
    """A listener of several such servers, which end together."""

    def __init__(self) -> None:
        """A subclass adds its `servers`."""
        self.servers: set[SocketServer] = set()

    async def retire(self) -> None:
        """As Listener.retire."""
        await asyncio.gather(*(server.retire() for server in self.servers))

    async def stop(self) -> None:
        """As Listener.stop; the grace period is the same for all."""
        await asyncio.gather(*(server.stop() for server in self.servers))


@lru_cache(maxsize=1024)
def network_of(address: str) -> str:
    """The network that counts as one client: an IPv4 address, the /64 of an IPv6 address, else the text."""
    try:
        parsed = _parsed(address)
    except ValueError:
        return address
    return str(parsed if parsed.version == 4 else ipaddress.ip_network((parsed, 64), strict=False))


def _is_in(networks: tuple[Network, ...], client: str) -> bool:
    if not client:
        return False
    address = _parsed(client)
    return any(address in network for network in networks)


def _parsed(client: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address without its zone; an IPv4-mapped one as IPv4. Raises ValueError."""
    address = ipaddress.ip_address(client.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


# Sockets. A client that connects before the relay serves waits up to five minutes for the greeting (RFC 5321, 4.5.3.2).
# If the relay ends before that, the connection is reset, and the client's queue keeps the mail.


async def bound(setting: str, where: Where) -> list[socket.socket]:
    """The listening sockets for an address, one for each IP address of its host; port 0 takes a free port.

    `setting` is the name in relay.toml, for messages. Raises ConfigError.
    """
    try:
        if isinstance(where, Path):
            return [await asyncio.to_thread(_unix_socket, where)]
        return _tcp_sockets(await tcp_places(where))
    except OSError as error:
        cause = error.strerror.partition(" (")[0] if error.strerror else str(error)
        raise ConfigError(f"{setting}: cannot listen on {where}: {cause}") from error


async def all_bound(addresses: Mapping[str, Where], passed: Sequence[int] = ()) -> Sockets:
    """The sockets for all addresses, by setting; none stays open on failure. Raises ConfigError.

    `passed` are descriptors of the service manager's sockets. If there are any, they must be those of all TCP
    addresses, and no others. A port that the relay has bound itself can be taken while it restarts.
    """
    held = {_place_of(each): each for each in [socket.socket(fileno=descriptor) for descriptor in passed]}
    sockets: dict[str, list[socket.socket]] = {}
    try:
        for setting, where in addresses.items():
            if passed and not isinstance(where, Path):
                sockets[setting] = await _held(setting, where, held)
            else:
                sockets[setting] = await bound(setting, where)
        _refuse_others(held)
    except BaseException:
        close_all({**sockets, "": list(held.values())})
        raise
    return sockets


async def tcp_places(where: TCPAddress) -> list[TCPAddress]:
    """Each IP address of this host, with the port. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(*where, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys(TCPAddress(str(place[0]), int(place[1])) for _, _, _, _, place in found))


async def _held(setting: str, where: TCPAddress, held: dict[TCPAddress, socket.socket]) -> list[socket.socket]:
    """Takes the sockets of this address out of `held`. Raises ConfigError."""
    try:
        places = await tcp_places(where)
    except OSError as error:
        raise ConfigError(f"{setting}: cannot listen on {where}: {error.strerror}") from error
    if missing := [str(place) for place in places if place not in held]:
        raise ConfigError(f"{setting}: systemd passes no socket for {', '.join(missing)}, but others: {_HOLD_PORTS}")
    taken = [held.pop(place) for place in places]
    for each in taken:
        each.setblocking(False)
    return taken


def _refuse_others(held: Iterable[TCPAddress]) -> None:
    """Raises ConfigError where sockets are left: clients would connect to them and wait for ever."""
    if others := ", ".join(str(place) for place in held):
        raise ConfigError(f"systemd passes sockets that no setting is for: {others}: {_HOLD_PORTS}")


def _place_of(passed: socket.socket) -> TCPAddress:
    """Raises ConfigError for anything but a listening TCP socket."""
    listens = passed.family in (socket.AF_INET, socket.AF_INET6) and passed.type == socket.SOCK_STREAM
    if not listens or not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ConfigError(f"systemd passes {passed.getsockname()!r}, which is no listening TCP socket: {_HOLD_PORTS}")
    return address_of([passed])


def close_all(sockets: Sockets) -> None:
    """Closes all sockets; those already closed stay so."""
    for some in sockets.values():
        for each in some:
            each.close()


def address_of(sockets: Sequence[socket.socket]) -> TCPAddress:
    """The real address of the first of these TCP sockets."""
    host, port, *_ = sockets[0].getsockname()
    return TCPAddress(host, port)


def _tcp_sockets(places: Iterable[TCPAddress]) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for place in places:
            family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
            sockets.append(socket.create_server(place, family=family, backlog=BACKLOG))
            sockets[-1].setblocking(False)
    except BaseException:
        close_all({"": sockets})
        raise
    return sockets


def _unix_socket(path: Path) -> socket.socket:
    """Binds a Unix socket, replacing one left by a killed relay but not one in use. Raises OSError."""
    _remove_dead_socket(path)
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(str(path))
        path.chmod(SOCKET_MODE)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def _remove_dead_socket(path: Path) -> None:
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(f"another process listens on {path}")
