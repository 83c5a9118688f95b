"""One worker: one of several processes that serve as one relay, with the descriptors passed by its supervisor.
Standard: descriptors are inherited through execve(2); none of them outlives the worker.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import structlog

from relay.config import Config
from relay.counting.board import Board
from relay.entry.listening import Sockets
from relay.runtime.aio import readable
from relay.runtime.stopping import Stop

log = structlog.get_logger(__name__)

_LENGTH_OCTETS = 8
_LONE = ("relay_toml", "supervisor", "lock", "neighbours", "board")
"""Fields of a worker with one descriptor each."""


@dataclass(frozen=True, slots=True)
class Texts:
    """An append-only sequence of texts in shared memory, with one writing process."""

    descriptor: int

    def add(self, text: str) -> None:
        """Appends a text; a concurrent reader sees all of it or nothing."""
        content = text.encode()
        end = os.fstat(self.descriptor).st_size
        os.pwrite(self.descriptor, len(content).to_bytes(_LENGTH_OCTETS, "big") + content, end)

    @property
    def first(self) -> str:
        """The first text."""
        return next(self._all())

    @property
    def last(self) -> str:
        """The last text."""
        return deque(self._all(), maxlen=1)[0]

    def _all(self) -> Iterator[str]:
        content, place = os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0), 0
        while True:
            begin = place + _LENGTH_OCTETS
            place = begin + int.from_bytes(content[place:begin], "big")
            if begin > len(content) or place > len(content):
                return
            yield content[begin:place].decode()


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker's number, the number of workers, and its descriptors.

    `sockets` are the listening ones, by setting. `relay_toml` has the texts of relay.toml at the start and at each
    reload (Texts). `supervisor` is the connection to the process that starts workers. `worker_id` identifies this
    worker in the memory of `neighbours` (store/neighbours.py). `place` is its place on the `board`
    (counting/board.py), -1 for none. `lock` is that of the embedded database, held as long as any worker serves; -1
    with PostgreSQL.
    """

    number: int
    of: int
    sockets: Mapping[str, tuple[int, ...]]
    relay_toml: int
    supervisor: int
    neighbours: int
    board: int
    worker_id: int = 0
    place: int = -1
    lock: int = -1

    @classmethod
    def from_json(cls, text: str) -> Worker:
        """Parses what `as_json` returned. Raises ValueError."""
        values = json.loads(text)
        values["sockets"] = {name: tuple(some) for name, some in values["sockets"].items()}
        return cls(**values)

    def as_json(self) -> str:
        """JSON for the command line of its process; nothing in it is secret."""
        return json.dumps(asdict(self))

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All descriptors."""
        listening = (each for some in self.sockets.values() for each in some)
        others = (getattr(self, name) for name in _LONE)
        return (*listening, *(each for each in others if each >= 0))

    @property
    def first(self) -> bool:
        """Whether it is the worker that does the work for all."""
        return self.number == 1

    @property
    def shared_board(self) -> Board:
        """The board shared by all workers; a private one for a worker without a place."""
        return Board(self.board, self.place) if self.place >= 0 else Board()

    @property
    def texts(self) -> Texts:
        """The texts of relay.toml."""
        return Texts(self.relay_toml)

    def share_of(self, config: Config) -> Config:
        """The configuration with this worker's share of memory and of keys kept ready."""
        limits = config.limits.model_copy(update={"messages_in_flight": config.limits.messages_in_flight // self.of})
        kmes = {
            name: kme.model_copy(update={"cache_high": -(-kme.cache_high // self.of)})
            for name, kme in config.kmes.items()
        }
        return config.model_copy(update={"limits": limits, "kmes": kmes})

    def listening(self) -> Sockets:
        """The listening sockets; call it once."""
        opened = {name: [socket.socket(fileno=each) for each in some] for name, some in self.sockets.items()}
        for some in opened.values():
            for each in some:
                each.setblocking(False)
        return opened

    def send(self, kind: str, value: Any) -> None:
        """Sends a message to the supervisor; lost if that does not read."""
        # In a file: the socket takes 200 KB at once, and with many peers a key report is larger.
        with suppress(OSError), os.fdopen(os.memfd_create("word"), "wb", buffering=0) as word:
            word.write(json.dumps([kind, value]).encode())
            with socket.socket(fileno=os.dup(self.supervisor)) as channel:
                socket.send_fds(channel, [b"word"], [word.fileno()], socket.MSG_DONTWAIT)

    @staticmethod
    async def receive(channel: socket.socket) -> tuple[str, Any] | None:
        """The supervisor's side: the next message of a worker; None when the worker has ended."""
        await readable(channel)
        said, files, _, _ = socket.recv_fds(channel, 4, 1)
        if not said:
            return None
        try:
            kind, value = json.loads(os.pread(files[0], os.fstat(files[0]).st_size, 0))
        finally:
            os.close(files[0])
        return kind, value

    async def stop_with_supervisor(self, stop: Stop) -> None:
        """Stops this worker, after its mails in flight, when the supervisor has ended."""
        with socket.socket(fileno=os.dup(self.supervisor)) as channel:
            channel.setblocking(False)
            with suppress(OSError):
                await asyncio.get_running_loop().sock_recv(channel, 1)
        log.error("supervisor_ended", meaning="this worker stops too")
        stop.request("the process that starts the workers has ended")
