"""What a pool of fresh keys needs of the client of one KME.
Standard: ETSI GS QKD 014 V1.1.1, 5.2 and 5.3; client.py has it for every protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from relay.keys.health import Health
from relay.keys.replies import KeyStatus
from relay.keys.stock import Accounts
from relay.keys.types import SAEID, Found, Key


class KeySource(Protocol):
    """One KME, as it is asked for fresh keys and for its status; the members are those of KMEClient."""

    name: str
    url: str
    accounts: Accounts
    state: Health
    most_per_request: int | None

    @property
    def at_once(self) -> int:
        """Maximum number of concurrent requests for one slave SAE."""

    @property
    def troubles(self) -> dict[str, str]:
        """The faults of the KME by call."""

    def bind(self) -> None:
        """Binds the client to the event loop that runs. Raises RuntimeError if it belongs to another one."""

    def give_late_to(self, take_in: Callable[[str, int, list[Key]], None]) -> None:
        """Sets what gets the keys of late answers: slave SAE, size in bits, keys."""

    def tries_again(self, failures: int, number: int) -> bool:
        """Whether to retry a failed request for `number` keys."""

    async def check_key_status(self, slave_sae_id: SAEID, *, patient: bool = True) -> KeyStatus:
        """The KME's status for this slave SAE. Raises KeyUnavailable."""

    async def draw_keys(self, slave_sae_id: str, number: int, size: int, *, patient: bool = True) -> list[Key]:
        """From 1 to `number` fresh keys of `size` bits. Raises KeyUnavailable."""

    async def keeps_undelivered(self, slave_sae_id: SAEID, own_sae_id: SAEID) -> Found:
        """What becomes of keys that the slave has not fetched when more are drawn. Raises KeyUnavailable."""
