"""Verifies the DKIM signatures and the ARC chain of a message, which is never held for what is found.
Standard: RFC 6376 6, RFC 8617 5.2 (ARC), RFC 8601 2.7 (results); signatures, fields and time are bounded.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import structlog

from relay import mime
from relay.aio import SMALL_OCTETS, off_loop
from relay.dkim.arc import Chain
from relay.dkim.canonical import Header
from relay.dkim.checking import Checked, NotPassed, Tags, check_tags, key_name, parse_tags
from relay.dkim.records import Answers, KeyRecords
from relay.dkim.results import Result
from relay.dkim.signing import Clock

log = structlog.get_logger(__name__)

SHOWN_SIGNATURE_CHARS = 8
"""So much of b= tells one signature from another (RFC 6008)."""
MAX_SIGNATURES = 10
"""Of more DKIM signatures the uppermost are verified, so that no mail costs more than these."""
FEW_FIELDS = 4
"""A signature and a set of ARC: what most messages have at most."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One DKIM-Signature field: its tags, the fields that it covers, or the result that is clear without a look."""

    field: bytes
    tags: Tags
    names: tuple[bytes, ...] = ()
    failed: NotPassed | None = None

    @classmethod
    def read(cls, field: bytes, now: float) -> Signature:
        """What the field says, looked at `now` (seconds since 1970)."""
        tags: dict[bytes, bytes] = {}
        try:
            tags = parse_tags(field)
            names = tuple(check_tags(tags, now))
            key_name(tags)
        except NotPassed as failed:
            return cls(field, tags, failed=failed)
        return cls(field, tags, names)

    def result(self, result: str, reason: str) -> Result:
        """With what tells it from others."""
        shown = {"header.d": b"d", "header.s": b"s", "header.a": b"a", "header.b": b"b"}
        properties = tuple(
            (name, _text(self.tags[tag])[: SHOWN_SIGNATURE_CHARS if tag == b"b" else None])
            for name, tag in shown.items()
            if tag in self.tags
        )
        return Result("dkim", result, reason, properties)


class Verifier:
    """Looks at the signatures of one message after the other."""

    def __init__(self, records: KeyRecords, clock: Clock = time.time) -> None:
        self._clock = clock
        self._records = records

    async def dkim(self, message: bytes) -> tuple[Result, ...]:
        """A result for each signature; `none` where there is none."""
        return (await self._look(message, arc=False))[0]

    async def arc(self, message: bytes) -> Chain:
        """The ARC chain, with its result."""
        return (await self._look(message, most=0))[1]

    async def both(self, message: bytes) -> tuple[Result, ...]:
        """The results of the DKIM signatures, and that of the ARC chain."""
        results, chain = await self._look(message)
        return (*results, chain.as_result)

    async def _look(
        self, message: bytes, *, most: int | None = None, arc: bool = True
    ) -> tuple[tuple[Result, ...], Chain]:
        most = MAX_SIGNATURES if most is None else most
        work = _work(message)
        read = await off_loop(work, _Read.of, message, most, self._clock())
        answers = await self._records.of([*read.names, *(read.chain_names if arc else ())])
        results = await off_loop(work, _results, read.checked, read.signatures, answers)
        if arc:
            await off_loop(work, read.chain.verify, read.checked, answers)
        if most and read.number > most:
            results = (*results, Result("dkim", "policy", f"only {most} of {read.number} signatures were looked at"))
        return results, read.chain


@dataclass(frozen=True, slots=True)
class _Read:
    """What a message says of its signatures: those that are looked at, how many there are, whose keys are needed."""

    checked: Checked
    signatures: list[Signature]
    number: int
    names: set[str]
    chain: Chain
    chain_names: list[str]

    @classmethod
    def of(cls, message: bytes, most: int, now: float) -> _Read:
        raw, body = mime.split(message)
        header = Header(raw)
        fields = header.named(b"dkim-signature")
        signatures = [Signature.read(field, now) for field in fields[:most]]
        names = {key_name(each.tags) for each in signatures if each.failed is None}
        chain = Chain(header, now)
        return cls(Checked(header, body), signatures, len(fields), names, chain, chain.key_names())


def _work(message: bytes) -> int:
    """How many octets of work it is: many signatures take a thread's time, however small the message."""
    header = mime.header_of(message).lower()
    few = header.count(b"dkim-signature") + header.count(b"arc-") <= FEW_FIELDS
    return len(message) if few else SMALL_OCTETS + 1


def _results(checked: Checked, signatures: list[Signature], answers: Answers) -> tuple[Result, ...]:
    if not signatures:
        return (Result("dkim", "none"),)
    return tuple(_result(checked, signature, answers) for signature in signatures)


def _result(checked: Checked, signature: Signature, answers: Answers) -> Result:
    if signature.failed is not None:
        return signature.result(signature.failed.result, signature.failed.reason)
    try:
        return signature.result("pass", checked.check(signature.tags, signature.names, signature.field, answers))
    except NotPassed as failed:
        return signature.result(failed.result, failed.reason)
    except Exception as error:  # noqa: BLE001 - whatever a signature is made of, it must not hold the mail for ever
        log.error("signature_not_verified", kind=type(error).__name__)
        return signature.result("permerror", "it cannot be verified")


def _text(octets: bytes) -> str:
    return octets.decode("ascii", "replace")
