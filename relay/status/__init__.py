"""How a relay reports its state: metrics for Prometheus, whether it is ready, alarms, the operators' page.
Standard: it is read-only, and mail comes first: work and connections are bounded, and no answer waits for the store.

    measures.py    what each process measures of itself, and the first one of the site: on the board (relay/counting)
    ready.py       whether mail is sealed or held safely
    sight.py       what alarms look at
    rules.py       when each is raised
    alarms.py      that each begins once and ends once
    standing.py    one that stands, and the file that commands read
    notifier.py    notices of them by mail or program
    exposition.py  the text of /metrics
    record.py      the last minutes in memory, some weeks in the store, for the page
    page/          the page
    server.py      connections: how many, how long, how fast; TLS
    access.py      who may ask
    listener.py        what there is to ask for, and what process/app.py and `check` know of it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # a command that only looks does not load all of the relay
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

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
    from relay.status.alarms import Alarms
    from relay.status.ready import Readiness
    from relay.store.store import Store


@dataclass(frozen=True, slots=True)
class Watched:
    """The parts of a serving relay that the status needs; one value for its lifetime."""

    config: Config
    board: Board
    keys: KeyRing
    policies: PoliciesInForce
    store: Store
    receiving: Receiving
    audit: Audit
    budget: Budget
    known: Callable[[], KnownSites]


class StatusModule(Protocol):
    """What listener.py has; only where [status] is set is it loaded."""

    def listens_on(self, config: Config) -> dict[str, Where]:
        """The address, by its setting."""

    def listener(
        self, watched: Watched, ready: Readiness, alarms: Alarms, sockets: Sockets
    ) -> AbstractAsyncContextManager[Listener]:
        """The server, ready; whatever it needs ends with the context. Raises ConfigError."""

    def states(self, config: Config) -> AsyncIterator[tuple[str, str, tuple[str, ...]]]:
        """For `check`: each item checked, its state and its faults."""
