"""A relay's reports on its state: metrics for Prometheus, readiness, alarms, the operators' page.
Read-only, and mail comes first: work and connections are bounded, and no response waits for the store.

    measures.py    metrics of each process, and of the site
    ready.py       readiness: whether mail is sealed or held safely
    next_start.py  whether a relay would start with the files as they are now
    observation.py       the input of alarm rules
    rules.py       the rules of all alarms
    alarms.py      the state of alarms
    active.py    an active alarm, and the file that commands read
    notifier.py    notices of alarms by mail or program
    exposition.py  the text of /metrics
    record.py      recent data in memory, history in the store, for the page
    page/          the page
    server.py      connections: number, time and rate limits; TLS
    access.py      access control
    listener.py    the routes, and the interface to process/app.py and `check`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # commands that only read do not import the whole relay
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from relay.audit.writing import Audit
    from relay.config import Config
    from relay.counting.board import Board
    from relay.entry import Listener
    from relay.entry.budget import Budget
    from relay.entry.listening import Sockets, Where
    from relay.identity import KnownSites
    from relay.key_receiver import Receiving
    from relay.keys.ring import KeyRing
    from relay.policy.reload import PoliciesInForce
    from relay.postfix.watch import PostfixWatch
    from relay.status.alarms import Alarms
    from relay.status.next_start import NextStart
    from relay.status.ready import Readiness
    from relay.store.store import Store


@dataclass(frozen=True, slots=True)
class Watched:
    """The parts of a serving relay that the status needs; one value for its lifetime.

    `postfix` is None except in the first process, and if relay.toml names no Postfix. `next_start` is
    None except in the first process. `smime_ends` returns when what S/MIME needs ends, by name; it blocks.
    """

    config: Config
    board: Board
    keys: KeyRing
    policies: PoliciesInForce
    store: Store
    receiving: Receiving
    audit: Audit
    budget: Budget
    known: Callable[[], KnownSites]
    postfix: PostfixWatch | None = None
    next_start: NextStart | None = None
    smime_ends: Callable[[], Mapping[str, datetime]] = dict


class StatusModule(Protocol):
    """The interface of listener.py, which is only loaded if [status] is set."""

    def listens_on(self, config: Config) -> dict[str, Where]:
        """The configured address, by setting."""

    def listener(
        self, watched: Watched, ready: Readiness, alarms: Alarms, sockets: Sockets
    ) -> AbstractAsyncContextManager[Listener]:
        """The server, ready; its resources are closed with the context. Raises ConfigError."""

    def read_files(self, config: Config) -> None:
        """Reads the files that a start reads, and keeps nothing. Raises ConfigError."""

    def states(self, config: Config) -> AsyncIterator[tuple[str, str, tuple[str, ...]]]:
        """For `check`: each item checked, its state and its faults."""
