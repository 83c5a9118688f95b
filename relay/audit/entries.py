"""Entries of the downgrade ledger, which is a view of the audit record, and the form of addresses in both.
Standard: deploy/AUDIT.md; addresses are hashed under keys derived from the site secret, unless configured in clear.
"""

from __future__ import annotations

import hmac
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import Any, Literal, get_args

from relay.errors import RelayError
from relay.mail import Mail
from relay.store.secret import SiteSecret

Event = Literal["downgrade", "plaintext", "shadow", "released", "dropped"]
"""Why an entry was written: a weaker level, no sealing by policy, shadow mode, or a person's decision.

The decision is to release or drop a message in quarantine.
"""
LEDGER: tuple[str, ...] = get_args(Event)
"""The events of the ledger."""

MAX_REASON = 2000
MAX_LISTED, LISTED_OCTETS = 1000, 512 * 1024
"""Maximum number of recipients in one record, and of their bytes; larger groups are split."""
_ADDRESS = re.compile(
    r"""(?:"(?:[^"\\]|\\.)*"|(?<![^\s<>(),;:"'])[^\s<>(),;:"'][^\s<>(),;:"]*)@(?:[^\s<>(),;:"]*[^\s<>(),;:"'.])?"""
)
"""A possible address in a text. It begins at the start of a word, so that long words are not slow."""
_HASH_OCTETS = 16
_ADDRESSES = 10_000


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """An entry about one mail, or about those of its recipients that one policy treats alike.

    `policy` is `file:line`, `listed` its levels, `level` the mail's actual protection. `message` is the SHA-256 of the
    message; `mail`, `queue_id` and `message_id` are as in log lines. `sender` and `recipients` are addresses, hashed
    when they are written. `by` is the person who decided. A retry's entry equals the first.
    """

    event: Event
    policy: str
    policy_version: str
    peer: str | None
    listed: tuple[str, ...]
    level: str
    reason: str
    message: str
    sender: str = field(repr=False)
    recipients: tuple[str, ...] = field(repr=False)
    by: str = ""
    mail: str = field(default="", compare=False)
    queue_id: str = field(default="", compare=False)
    message_id: str = field(default="", compare=False)

    @classmethod
    def of(cls, event: Event, mail: Mail, recipients: Sequence[str], **members: Any) -> LedgerEntry:
        """An entry about this mail, to these of its recipients."""
        return cls(
            event=event,
            message=mail.digest,
            sender=mail.envelope.sender,
            recipients=tuple(recipients),
            mail=mail.id,
            queue_id=mail.origin.ident,
            message_id=mail.message_id,
            **members,
        )

    def members(self, addresses: AddressHash) -> Iterator[bytes]:
        """Yields JSON members without braces, split by recipients into as many records as needed, with the current
        time.
        """
        written = [addresses.write(address) for address in self.recipients]
        return (self._members(addresses, some) for some in in_lines(written) or [[]])

    def _members(self, addresses: AddressHash, recipients: Sequence[str]) -> bytes:
        fields = {
            "mail": self.mail,
            "queue_id": self.queue_id,
            "message_id": self.message_id,
            "policy": self.policy,
            "policy_version": self.policy_version,
            "peer": self.peer or "",
            "listed": list(self.listed),
            "level": self.level,
            "reason": addresses.hide_in(self.reason[:MAX_REASON]),
            "message": self.message,
            "sender": addresses.write(self.sender),
            "recipients": recipients,
        }
        return event_members(self.event, fields | ({"by": self.by} if self.by else {}))


def in_lines(recipients: Sequence[str]) -> list[Sequence[str]]:
    """The recipients, in their recorded form, in groups that each fit a line."""
    groups: list[Sequence[str]] = []
    begin = octets = 0
    for at, each in enumerate(recipients):
        length = len(encode_basestring_ascii(each))
        if at - begin == MAX_LISTED or octets + length > LISTED_OCTETS:
            groups.append(recipients[begin:at])
            begin, octets = at, 0
        octets += length
    return [*groups, recipients[begin:]] if recipients else []


def event_members(event: str, fields: dict[str, Any]) -> bytes:
    """The JSON members of a record: time, event and further fields."""
    return json.dumps({"time": now(), "event": event, **fields})[1:-1].encode("ascii")


def now() -> str:
    """Returns the current time in the record's format: `2026-11-25T10:00:00.123Z`."""
    return as_time(time.time_ns())


def as_time(nanoseconds: int) -> str:
    """Formats any time, in nanoseconds since 1970, like `now`."""
    milliseconds = nanoseconds // 1_000_000
    return f"{_second(milliseconds // 1000)}.{milliseconds % 1000:03}Z"


@lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    """Cached, since most calls repeat the second."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


class AddressHash:
    """Hashes addresses for the audit record, under keys derived from the site secret.

    So only this site can test whether a hash is of an address.
    """

    def __init__(self, secret: SiteSecret | None) -> None:
        """Without a secret addresses are written in clear."""
        self._keys = secret.derived(b"ledger addresses") if secret is not None else ()
        self.hide_in: Callable[[str], str] = lru_cache(maxsize=100)(self._hide_in)
        """Replaces each address in a text as `write` does; cached, since many recipients share the text."""
        self.quoted: Callable[[str], str] = lru_cache(maxsize=_ADDRESSES)(self._quoted)
        """Applies `write`, as a JSON string; cached."""

    @property
    def hides(self) -> bool:
        """Whether addresses are hashed."""
        return bool(self._keys)

    def write(self, address: str) -> str:
        """The form of the address in a new record; "" stays ""."""
        return _hashed(self._keys[0], address) if self._keys and address else address

    def cause(self, error: BaseException | None) -> str:
        """The cause of a failure; if addresses are hashed, only in our own words: others' may contain addresses."""
        if error is None:
            return ""
        own = error.own_words if self._keys and isinstance(error, RelayError) else ""
        return self.hide_in((own or str(error))[:MAX_REASON])

    def _hide_in(self, text: str) -> str:
        return _ADDRESS.sub(lambda match: self.write(match[0]), text) if self._keys and "@" in text else text

    def spellings(self, address: str) -> set[str]:
        """All forms that records may have for the address, including those under older secrets."""
        return {address, address.lower(), *(_hashed(key, address) for key in self._keys)}

    def _quoted(self, address: str) -> str:
        return encode_basestring_ascii(self.write(address))


def _hashed(key: bytes, address: str) -> str:
    return hmac.digest(key, address.lower().encode("utf-8", "surrogatepass"), "sha256")[:_HASH_OCTETS].hex()
