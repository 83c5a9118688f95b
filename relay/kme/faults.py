"""Faults that a development KME can be made to show, and their effect on keys and answers.
Standard: each kind was seen at a real KME; otherwise ETSI GS QKD 014 V1.1.1.
"""

from __future__ import annotations

import asyncio
import uuid
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from relay.keys.types import Key

KINDS = (
    "hang",  # accept the request, answer never
    "hang_in_body",  # half of the answer, then nothing
    "drop",  # close the connection instead of answering, before anything is spent
    "lose_reply",  # spend the keys, then close the connection
    "http",  # answer with `code`, `body`, `headers`
    "short",  # fewer keys than asked for (`number`, else half)
    "none",  # 200 with an empty list
    "too_many",  # one key more than asked for
    "wrong_length",  # keys of half the size
    "repeat_ids",  # all keys of the reply under one ID
    "same_again",  # the keys of the previous reply
    "same_octets",  # the octets of the previous reply under new IDs
    "other_keys",  # dec_keys: keys under IDs that were not asked for
    "lower_case",  # all field names in lower case
    "object_keys",  # `keys` as an object
    "capital_keys",  # `Keys` for `keys`
    "integer_ids",  # key_IDs as numbers
    "bad_base64",  # a key that is not base64
    "not_json",  # 200 with something else
    "close_unsaid",  # answer, then close the connection without announcing it
    "late",  # the right answer, after `seconds` and once `until` is set
)


@dataclass(frozen=True, slots=True)
class Misbehaviour:
    """One of KINDS, with its parameters.

    `spends` False: keys that an answer did not deliver can still be fetched by their key_IDs.
    """

    kind: str
    code: int = 500
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    number: int | None = None
    seconds: float = 0.0
    until: asyncio.Event | None = None
    spends: bool = True

    def fresh(self, number: int, size: int) -> tuple[int, int]:
        """Number and size (bits) of the keys to draw for a request of `number` keys of `size`."""
        match self.kind:
            case "short":
                return max(1, self.number or number // 2), size
            case "none":
                return 0, size
            case "too_many":
                return number + 1, size
            case "wrong_length":
                return number, size // 2
        return number, size

    def fetched(self, key_ids: list[str]) -> list[str]:
        """The requested keys that it delivers."""
        if self.kind == "none":
            return []
        return key_ids[: max(1, len(key_ids) // 2)] if self.kind == "short" else key_ids

    def unreadable(self, keys: list[Key]) -> list[Key]:
        """The keys that a client cannot read from the answer."""
        if self.kind in ("other_keys", "not_json") or (self.kind == "repeat_ids" and len(keys) > 1):
            return keys
        return keys[-1:] if self.kind == "bad_base64" else []


GOOD = Misbehaviour("")
"""No fault."""


@dataclass(frozen=True, slots=True)
class KMERequest:
    """One request as received by a KME; `content` is None if missing or unreadable."""

    call: str
    """`status`, `enc_keys` or `dec_keys`."""
    caller: str
    """The calling SAE."""
    other: str
    """The SAE in the path: the slave, for `dec_keys` the master."""
    method: str
    path: str
    query: Mapping[str, str]
    content: Any
    connection: int


class Faults:
    """The current faults of one KME; they may be changed while it runs."""

    def __init__(self) -> None:
        self.handshake = 0.0
        """Delay of a new connection, in seconds."""
        self.latency = 0.0
        """Delay of a request, in seconds."""
        self.limits: dict[str, Any] = {}
        """Overrides of limits in its status, by the standard's names; 0: omitted."""
        self.gives_what_is_left = False
        """If it has fewer keys than requested, it delivers these."""
        self.exhausted: Misbehaviour | None = None
        """Its answer when keys have run out, instead of the 503 with details."""
        self.not_found: Misbehaviour | None = None
        """Its answer for unknown key_IDs, instead of the standard's 400 that names them."""
        self.decide: Callable[[KMERequest], Misbehaviour | None] = lambda _request: None
        """Called for each request without a planned fault."""
        self._planned: dict[str, deque[Misbehaviour]] = {}
        self._always: dict[str, Misbehaviour] = {}

    def misbehave(self, call: str, kind: str, *, times: int | None = 1, **details: Any) -> None:
        """Plans a fault for the next `times` requests of `call`; None: for all until `behave`. Raises ValueError."""
        if kind not in KINDS:
            raise ValueError(f"{kind}: no such misbehaviour; there are {', '.join(KINDS)}")
        fault = Misbehaviour(kind, **details)
        if times is None:
            self._always[call] = fault
        else:
            self._planned.setdefault(call, deque()).extend([fault] * times)

    def behave(self) -> None:
        """Clears all planned faults."""
        self._planned.clear()
        self._always.clear()

    def next_fault(self, request: KMERequest) -> Misbehaviour:
        """The fault for this request, or GOOD."""
        if planned := self._planned.get(request.call):
            return planned.popleft()
        return self._always.get(request.call) or self.decide(request) or GOOD


def key_container(keys: list[Key], fault: Misbehaviour) -> dict[str, Any]:
    """The key container (clause 6.3) with this fault."""
    entries: list[dict[str, Any]] = [{"key_ID": key.key_ID, "key": b64encode(key.key).decode()} for key in keys]
    match fault.kind:
        case "repeat_ids":
            entries = [entry | {"key_ID": entries[0]["key_ID"]} for entry in entries]
        case "bad_base64":
            entries[-1]["key"] = "*" + entries[-1]["key"][1:]
        case "integer_ids":
            entries = [entry | {"key_ID": uuid.UUID(entry["key_ID"]).int} for entry in entries]
        case "lower_case":
            entries = [{"key_id": entry["key_ID"], "key": entry["key"]} for entry in entries]
        case "object_keys":
            return {"keys": entries[0] if len(entries) == 1 else {str(i): e for i, e in enumerate(entries)}}
        case "not_json":
            return {"what": "this is an object, and not a key container"}
        case "capital_keys":
            return {"Keys": entries}
    return {"keys": entries}


def renamed(key: Key) -> Key:
    """The same octets under a new ID."""
    return replace(key, key_ID=str(uuid.uuid4()))
