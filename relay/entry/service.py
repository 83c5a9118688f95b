"""What all conversations of one listening address share, and the deliveries that outlive their conversations.
Standard: RFC 5321 6.1: a mail that was received whole is brought to its end, whatever becomes of the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from relay.budget import Budget
from relay.config import ListenerSettings
from relay.entry import Recipe
from relay.entry.connections import Connections


@dataclass(frozen=True, slots=True)
class Service:
    """What all conversations of one listening address share."""

    recipe: Recipe
    hostname: str
    settings: ListenerSettings
    budget: Budget
    connections: Connections
    deliveries: set[asyncio.Task[None]] = field(default_factory=set)

    @classmethod
    def of(cls, recipe: Recipe, hostname: str, settings: ListenerSettings, budget: Budget) -> Service:
        """For one more listening address; `hostname` is what we say in the greeting."""
        return cls(recipe, hostname, settings, budget, Connections(settings))

    def run(self, delivery: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Starts what has to come to its end also when its client goes away; `SMTPEntry.stop` waits for it."""
        task = asyncio.create_task(delivery)
        self.deliveries.add(task)
        task.add_done_callback(self.deliveries.discard)
        return task
