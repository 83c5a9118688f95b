"""What a development KME can be told to do wrong, and what it then does to keys and answers.
Standard: each kind was seen at a real KME; where nothing is said, ETSI GS QKD 014 V1.1.1 is kept to.
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
    "same_again",  # the keys of the reply before
    "same_octets",  # the octets of the reply before under new IDs
    "other_keys",  # dec_keys: keys under IDs that were not asked for
    "lower_case",  # all field names in lower case
    "object_keys",  # `keys` as an object
    "capital_keys",  # `Keys` for `keys`
    "integer_ids",  # key_IDs as numbers
    "bad_base64",  # a key that is not base64
    "not_json",  # 200 with something else
    "close_unsaid",  # answer, then close the connection without having said so
    "late",  # the right answer, and no sooner than after `seconds`, or before `until` is set
)


@dataclass(frozen=True, slots=True)
class Misbehaviour:
    """One of KINDS, with what it needs.

    `spends` False: the KME has keys by their key_IDs still that an answer did not bring.
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
        """How many keys of how many bits it draws where `number` of `size` are asked for."""
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
        """Which of the keys that are asked for it gives."""
        if self.kind == "none":
            return []
        return key_ids[: max(1, len(key_ids) // 2)] if self.kind == "short" else key_ids

    def unreadable(self, keys: list[Key]) -> list[Key]:
        """Those of these keys about which an answer with them says nothing."""
        if self.kind in ("other_keys", "not_json") or (self.kind == "repeat_ids" and len(keys) > 1):
            return keys
        return keys[-1:] if self.kind == "bad_base64" else []


GOOD = Misbehaviour("")
"""What is right."""


@dataclass(frozen=True, slots=True)
class KMERequest:
    """One request as a KME got it; `content` is None where there is none that could be read."""

    call: str
    """`status`, `enc_keys` or `dec_keys`."""
    caller: str
    """The SAE that asks."""
    other: str
    """The SAE in the path: the slave, at `dec_keys` the master."""
    method: str
    path: str
    query: Mapping[str, str]
    content: Any
    connection: int


class Faults:
    """What one KME does wrong now; all of it may be changed while it runs."""

    def __init__(self) -> None:
        self.handshake = 0.0
        """Seconds that a new connection takes."""
        self.latency = 0.0
        """Seconds that a request takes."""
        self.limits: dict[str, Any] = {}
        """What its status says instead of the link's settings, by the standard's names; 0: it does not say."""
        self.gives_what_is_left = False
        """Where it has fewer keys than asked for, it gives these."""
        self.exhausted: Misbehaviour | None = None
        """How it says that keys have run out, instead of with the 503 that has details."""
        self.not_found: Misbehaviour | None = None
        """What it answers for unknown key_IDs instead of the standard's 400 that names them."""
        self.decide: Callable[[KMERequest], Misbehaviour | None] = lambda _request: None
        """Is asked for each request for which nothing else was planned."""
        self._planned: dict[str, deque[Misbehaviour]] = {}
        self._always: dict[str, Misbehaviour] = {}

    def misbehave(self, call: str, kind: str, *, times: int | None = 1, **details: Any) -> None:
        """Do so at the next `times` requests of `call`; None: at each one until `behave`. Raises ValueError."""
        if kind not in KINDS:
            raise ValueError(f"{kind}: no such misbehaviour; there are {', '.join(KINDS)}")
        fault = Misbehaviour(kind, **details)
        if times is None:
            self._always[call] = fault
        else:
            self._planned.setdefault(call, deque()).extend([fault] * times)

    def behave(self) -> None:
        """Forget what was planned."""
        self._planned.clear()
        self._always.clear()

    def next_fault(self, request: KMERequest) -> Misbehaviour:
        """What to do with this request, which is GOOD where nothing is wrong."""
        if planned := self._planned.get(request.call):
            return planned.popleft()
        return self._always.get(request.call) or self.decide(request) or GOOD


def key_container(keys: list[Key], fault: Misbehaviour) -> dict[str, Any]:
    """Clause 6.3, Key container, spoilt in that way."""
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
    """The same octets under an ID that nobody knows."""
    return replace(key, key_ID=str(uuid.uuid4()))
