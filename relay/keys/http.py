"""Requests to a KME, replies, and senders; transport.py implements sending.
Standard: HTTP/1.1 (RFC 9112); independent of keys.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from relay.keys.faults import Call, KMEFault
from relay.keys.replies import MAX_ERROR_OCTETS, REPLY_MARGIN_OCTETS

if TYPE_CHECKING:
    from relay.keys.transport import Transport

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class HTTPRequest:
    """One request: `path` is already URL-encoded and relative to the KME's URL; `json` None means no body.

    `sae` is the SAE that the keys are shared with. A request for received keys has their key_IDs: its reply is
    stored with both. `max_octets` is the maximum size of the body of a reply with keys, in bytes.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    json: Mapping[str, Any] | None = None
    sae: str = ""
    key_IDs: tuple[str, ...] = ()
    max_octets: int = REPLY_MARGIN_OCTETS

    def limit(self, code: int) -> int:
        """Maximum size of the body of a reply with this HTTP status, in bytes."""
        return self.max_octets if code == 200 else min(self.max_octets, MAX_ERROR_OCTETS)

    def as_json(self) -> dict[str, Any]:
        """The JSON form, for `from_json`."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> HTTPRequest:
        """The request with the fields of `as_json`."""
        query = tuple((name, value) for name, value in fields["query"])
        return cls(**{**fields, "query": query, "key_IDs": tuple(fields["key_IDs"])})


@dataclass(frozen=True, slots=True)
class HTTPReply:
    """A reply: HTTP status, body, and the seconds of Retry-After, if given.

    `kept`: it is stored for a start after a kill. `whole` False: the body was larger than the request allows, and is
    dropped.

    A body that may hold keys is a bytearray, so that `wipe` can overwrite it.
    """

    code: int
    body: bytes | bytearray = field(repr=False)
    retry_after: float | None = None
    kept: bool = False
    whole: bool = True

    def wipe(self) -> None:
        """Overwrites the body after its keys were extracted."""
        if isinstance(self.body, bytearray):
            self.body[:] = bytes(len(self.body))


@dataclass(frozen=True, slots=True)
class Question(Generic[Result]):
    """A request to a KME, and `read`, which parses the body of its reply.

    `spends` is the number of keys burnt if the KME may have carried out a request without an answer. Such a request is
    retried within the burn budget. `bits` is the amount requested, to be compared with the status.
    """

    call: Call
    request: HTTPRequest
    read: Callable[[bytes | bytearray], Awaitable[Result]]
    spends: int = 0
    bits: int = 0


class NoAnswer(Exception):
    """No complete reply arrived. `sent`: the KME may have carried out the request. `fault`: its kind.

    `unheard`: the connection was closed, and the KME has never answered.
    """

    def __init__(self, cause: str, *, sent: bool, fault: KMEFault, unheard: bool = False) -> None:
        super().__init__(cause)
        self.sent = sent
        self.fault = fault
        self.unheard = unheard


Sender = Callable[[HTTPRequest, float, Callable[[], None]], Awaitable[HTTPReply]]
"""Sends requests to one KME: Transport.send, or a Receiver's for that KME."""


class Receiver(Protocol):
    """Sends requests for received keys."""

    async def send(
        self, kme: str, transport: Transport, request: HTTPRequest, within: float, on_sent: Callable[[], None]
    ) -> HTTPReply:
        """As Transport.send; a reply with keys is in the spool. Raises NoAnswer, and StoreUnavailable: not asked."""

    async def hand_over(self) -> None:
        """Releases the spool file for import into the store."""

    async def close(self) -> None:
        """Waits briefly for calls in flight, and closes the spool."""
