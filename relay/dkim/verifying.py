"""Verifies the DKIM signatures and the ARC chain of a message, which is never held for what is found.
Standard: RFC 6376 6, RFC 8617 5.2 (ARC), RFC 8601 2.7 (results); signatures, fields and time are bounded.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from relay import mime
from relay.dkim.arc import Chain
from relay.dkim.canonical import Header
from relay.dkim.checking import Checked, NotPassed, Tags, check_tags, key_name, parse_tags
from relay.dkim.records import Answers, KeyRecords
from relay.dkim.results import Result
from relay.levels.content import SMALL_OCTETS, off_loop

log = structlog.get_logger(__name__)

SHOWN_SIGNATURE_CHARS = 8
"""So much of b= tells one signature from another (RFC 6008)."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One DKIM-Signature field: its tags, the fields that it covers, or the result that is clear without a look."""

    field: bytes
    tags: Tags
    names: tuple[bytes, ...] = ()
    failed: NotPassed | None = None

    @classmethod
    def read(cls, field: bytes) -> Signature:
        """What the field says."""
        tags: dict[bytes, bytes] = {}
        try:
            tags = parse_tags(field)
            names = tuple(check_tags(tags))
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

    def __init__(self, records: KeyRecords, max_signatures: int = 10) -> None:
        """Of more than `max_signatures` DKIM signatures the uppermost are verified."""
        self._records = records
        self._most = max_signatures

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
        most = self._most if most is None else most
        size = len(message)
        checked, chain = await off_loop(size, _read, message)
        fields = checked.header.named(b"dkim-signature")
        signatures = [Signature.read(field) for field in fields[:most]]
        names = {key_name(each.tags) for each in signatures if each.failed is None}
        answers = await self._records.of([*names, *(chain.key_names() if arc else ())])
        work = size if len(signatures) + chain.length <= 2 else SMALL_OCTETS + 1  # many of them take a thread's time
        results = await off_loop(work, _results, checked, signatures, answers)
        if arc:
            await off_loop(work, chain.verify, checked, answers)
        if most and len(fields) > most:
            results = (*results, Result("dkim", "policy", f"only {most} of {len(fields)} signatures were looked at"))
        return results, chain


def _read(message: bytes) -> tuple[Checked, Chain]:
    raw, body = mime.split(message)
    header = Header(raw)
    return Checked(header, body), Chain(header)


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
