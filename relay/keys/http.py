"""One request to a KME, what comes back, and who may send it; transport.py does.
Standard: HTTP/1.1 (RFC 9112). Nothing here knows what a key is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from relay.keys.faults import KMEFault
from relay.keys.replies import REPLY_MARGIN_OCTETS

if TYPE_CHECKING:
    from relay.keys.transport import Transport


@dataclass(frozen=True, slots=True)
class HTTPRequest:
    """One request: `path` is already URL-encoded and relative to the KME's URL; `json` None means no body.

    `sae` is the SAE that the keys are shared with. One for received keys says which they are: its reply is written down
    with both. `max_octets` is the maximum size of the reply's body, in bytes.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    json: Mapping[str, Any] | None = None
    sae: str = ""
    key_IDs: tuple[str, ...] = ()
    max_octets: int = REPLY_MARGIN_OCTETS

    def as_json(self) -> dict[str, Any]:
        """All that `from_json` needs."""
        return {
            "method": self.method,
            "path": self.path,
            "query": self.query,
            "json": self.json,
            "sae": self.sae,
            "key_IDs": self.key_IDs,
            "max_octets": self.max_octets,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> HTTPRequest:
        """The request that `as_json` gave these for, which have been through JSON."""
        query = tuple((name, value) for name, value in fields["query"])
        return cls(**{**fields, "query": query, "key_IDs": tuple(fields["key_IDs"])})


@dataclass(frozen=True, slots=True)
class HTTPReply:
    """What came back: HTTP status, the body, and the seconds of Retry-After where they were given.

    `kept`: it is written down for the start after a kill. `whole` False: the body was larger than the request allows,
    and nothing of it is here.

    A body that may hold keys is a bytearray, so that `wipe` can overwrite it.
    """

    code: int
    body: bytes | bytearray = field(repr=False)
    retry_after: float | None = None
    kept: bool = False
    whole: bool = True

    def wipe(self) -> None:
        """Overwrites the body, once its keys were taken out of it."""
        if isinstance(self.body, bytearray):
            self.body[:] = bytes(len(self.body))


class NoAnswer(Exception):
    """No whole reply came. `sent`: the KME may have carried the request out. `fault`: what kind it is.

    `in_time` is False when it was we who stopped waiting.
    """

    def __init__(self, cause: str, *, sent: bool, fault: KMEFault, in_time: bool = True) -> None:
        super().__init__(cause)
        self.sent = sent
        self.fault = fault
        self.in_time = in_time


Sender = Callable[[HTTPRequest, float, Callable[[], None]], Awaitable[HTTPReply]]
"""One KME's way of sending requests: Transport.send, or a Receiver's for that KME."""


class Receiver(Protocol):
    """What sends the requests for received keys."""

    async def send(
        self, kme: str, transport: Transport, request: HTTPRequest, within: float, on_sent: Callable[[], None]
    ) -> HTTPReply:
        """As Transport.send; a reply with keys is in the spool. Raises NoAnswer, and StoreUnavailable: not asked."""

    async def hand_over(self) -> None:
        """What was written so far may be taken over into the store."""

    async def close(self) -> None:
        """Lets calls under way end, for a moment, and lets go of the spool."""
