"""A checkpoint of the audit record: the site's signed statement of the number of records and the last one.
Standard: deploy/AUDIT.md; composite ML-DSA with a context string (relay/identity/composite.py), JSON (RFC 8259), base64
(RFC 4648).

Its holder can later detect whether any of those records was changed, removed or inserted, even by an attacker who can
rewrite the whole chain.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from operator import itemgetter
from typing import Any

from cryptography.exceptions import InvalidSignature

from relay.audit.verifying import Days, ExpectedLine
from relay.errors import ConfigError
from relay.identity.composite import (
    CompositeSigningPrivateKey,
    CompositeSigningPublicKey,
    from_public_info,
    public_info,
)

FORMAT = 2
MAX_OCTETS = 1024 * 1024
_CONTEXT = b"qumail-relay audit checkpoint %d" % FORMAT
_MEMBERS = {"format", "checkpoint", "key", "signature"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The signed statement: site name, SAE, host, time (RFC 3339, UTC), and the state of the chain.

    `first` is the number of the first record covered, `number` that of the last, `head` the last line's hash.
    `keep_days` promises to keep a record for at least this number of days, None without a promise. `days` are the days
    of the records (verifying.py); None in checkpoints of earlier releases.
    """

    site: str
    sae_id: str
    host: str
    time: str
    first: int
    number: int
    head: str
    keep_days: int | None = None
    days: Days | None = None

    @property
    def expected(self) -> ExpectedLine:
        """The line that the checkpoint proves. Without `days` all records may be of the checkpoint's day."""
        day = f"{datetime.fromisoformat(self.time).astimezone(UTC):%Y-%m-%d}"
        days = self.days if self.days is not None else ((self.first, day),)
        return ExpectedLine(self.number, self.head, self.first, self.keep_days, days)


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint with a valid signature, and its signer: SHA-256 of the public key, as 64 hexadecimal digits."""

    checkpoint: Checkpoint
    signer: str


def sign(checkpoint: Checkpoint, key: CompositeSigningPrivateKey) -> str:
    """Returns the file for the auditor: one JSON object, in lines short enough for mail."""
    said = {name: value for name, value in asdict(checkpoint).items() if value is not None}
    inner = json.dumps(said).encode("ascii")
    whole = {
        "format": FORMAT,
        "checkpoint": base64.b64encode(inner).decode(),
        "key": base64.b64encode(public_info(key.public_key())).decode(),
        "signature": base64.b64encode(key.sign(inner, _CONTEXT)).decode(),
    }
    return json.dumps(whole, indent=1) + "\n"


def read(content: bytes, source: str) -> SignedCheckpoint:
    """Returns the checkpoint in a file after verification of its signature by the key in it. Raises ConfigError.

    The result does not tell whose key this is.
    """
    try:
        whole = _object(content)
        key = _key(whole)
        inner = _octets(whole, "checkpoint")
        key.verify(_octets(whole, "signature"), inner, _CONTEXT)
        return SignedCheckpoint(_checkpoint(_object(inner)), signer_of(key))
    except InvalidSignature as error:
        raise ConfigError(f"{source}: its signature is wrong: it was changed") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{source}: not a checkpoint: {error}") from error


def signer_of(key: CompositeSigningPublicKey) -> str:
    """SHA-256 of the SubjectPublicKeyInfo (RFC 5280, 4.1.2.7)."""
    return hashlib.sha256(public_info(key)).hexdigest()


def _key(whole: dict[str, Any]) -> CompositeSigningPublicKey:
    """Returns the public key in a checkpoint of our format. Raises ValueError."""
    if whole.keys() != _MEMBERS or whole["format"] != FORMAT:
        raise ValueError("of no format that is known here")
    key = from_public_info(_octets(whole, "key"))
    if not isinstance(key, CompositeSigningPublicKey):
        raise ValueError("its key is not one of ML-DSA-87 with P-384")  # noqa: TRY004 - all is one fault of the file
    return key


def _checkpoint(inner: dict[str, Any]) -> Checkpoint:
    days = inner.pop("days", None)
    checkpoint = Checkpoint(**inner, days=_days(days) if days is not None else None)
    texts = (checkpoint.site, checkpoint.sae_id, checkpoint.host, checkpoint.time, checkpoint.head)
    if not all(isinstance(each, str) and each.isprintable() for each in texts):
        raise ValueError("a member that should be text is none")
    if (
        type(checkpoint.number) is not int
        or type(checkpoint.first) is not int
        or not 0 <= checkpoint.first <= checkpoint.number + 1
    ):
        raise ValueError("its numbers are none")
    if checkpoint.keep_days is not None and (type(checkpoint.keep_days) is not int or checkpoint.keep_days < 1):
        raise ValueError("its number of days is none")
    if len(checkpoint.head) != 64 or set(checkpoint.head) - set("0123456789abcdef"):
        raise ValueError("its hash is none")
    if datetime.fromisoformat(checkpoint.time).tzinfo is None:
        raise ValueError("its time has no zone")
    return checkpoint


def _days(said: Any) -> Days:
    days = tuple((number, date.fromisoformat(day).isoformat()) for number, day in said)
    if any(type(number) is not int for number, _ in days) or sorted(days, key=itemgetter(1)) != sorted(days):
        raise ValueError("its days are none")
    return days


def _object(content: bytes) -> dict[str, Any]:
    value = json.loads(content)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - all is one fault of the file
    return value


def _octets(whole: dict[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(whole[name], validate=True)
    except binascii.Error as error:
        raise ValueError(f"{name} is not base64") from error
