"""Verifies the DKIM signatures and the ARC chain of a message, and adds the results on top of the opened original.
Standard: RFC 6376 6, RFC 8617 5 (ARC), RFC 8601 2.7 (results), 4 and 5 (adding them, removing forged ones).

No result holds a message; signatures, fields and time are bounded.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from relay.config import Config
from relay.dkim.arc import ARCChain
from relay.dkim.canonical import Header
from relay.dkim.checking import Checked, check_tags, parse_tags
from relay.dkim.records import Answers, KeyRecords, NotPassed, Tags, key_name
from relay.dkim.results import AuthResult, results_field, without_forged
from relay.dkim.signing import Clock
from relay.formats import mime
from relay.runtime.aio import SMALL_OCTETS, off_loop

log = structlog.get_logger(__name__)

SHOWN_SIGNATURE_CHARS = 8
"""Number of characters of b= that distinguish one signature from another (RFC 6008)."""
MAX_SIGNATURES = 10
"""Maximum number of DKIM signatures verified for a mail, the uppermost first."""
FEW_FIELDS = 4
"""Usual maximum of DKIM and ARC fields in a message: one signature and one ARC set."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One DKIM-Signature field: its tags and covered fields, or the failure of its syntax check."""

    field: bytes
    tags: Tags
    names: tuple[bytes, ...] = ()
    failed: NotPassed | None = None

    @classmethod
    def read(cls, field: bytes, now: float) -> Signature:
        """Parses the field; `now` is in seconds since 1970."""
        tags: dict[bytes, bytes] = {}
        try:
            tags = parse_tags(field)
            names = tuple(check_tags(tags, now))
            key_name(tags)
        except NotPassed as failed:
            return cls(field, tags, failed=failed)
        return cls(field, tags, names)

    def result(self, result: str, reason: str) -> AuthResult:
        """The result with the properties that identify the signature."""
        shown = {"header.d": b"d", "header.s": b"s", "header.a": b"a", "header.b": b"b"}
        properties = tuple(
            (name, _text(self.tags[tag])[: SHOWN_SIGNATURE_CHARS if tag == b"b" else None])
            for name, tag in shown.items()
            if tag in self.tags
        )
        return AuthResult("dkim", result, reason, properties)


class Verifier:
    """Verifies the signatures of messages."""

    def __init__(self, records: KeyRecords, clock: Clock = time.time) -> None:
        self._clock = clock
        self._records = records

    async def both(self, message: bytes) -> tuple[AuthResult, ...]:
        """A result for each DKIM signature, `none` without any, and that of the ARC chain."""
        work = _work(message)
        read = await off_loop(work, _Read, message, work, self._clock())
        answers = await self._records.of(read.names)
        results = await off_loop(read.work, read.results, answers)
        if read.number > MAX_SIGNATURES:
            remark = f"only {MAX_SIGNATURES} of {read.number} signatures were looked at"
            results = (*results, AuthResult("dkim", "policy", remark))
        await off_loop(read.work, read.chain.verify, read.checked, answers)
        return (*results, read.chain.as_result)


class _Read:
    """The parsed signatures of a message: those to verify, their total number, and the required keys."""

    def __init__(self, message: bytes, work: int, now: float) -> None:
        end, begin = mime.bounds(message)
        header, body = Header(message[:end]), memoryview(message)[begin:]
        fields = header.named(b"dkim-signature")
        self.work, self.number = work, len(fields)
        self.checked = Checked(header, body)
        self.signatures = [Signature.read(field, now) for field in fields[:MAX_SIGNATURES]]
        self.chain = ARCChain(header, now)
        self.names = [key_name(each.tags) for each in self.signatures if each.failed is None] + self.chain.key_names()

    def results(self, answers: Answers) -> tuple[AuthResult, ...]:
        """A result for each signature."""
        if not self.signatures:
            return (AuthResult("dkim", "none"),)
        return tuple(_result(self.checked, signature, answers) for signature in self.signatures)


def _work(message: bytes) -> int:
    """The work in octets: many signatures take long, however small the message."""
    header = mime.header_of(message).lower()
    few = header.count(b"dkim-signature") + header.count(b"arc-") <= FEW_FIELDS
    return mime.work(message) if few else SMALL_OCTETS + 1


def _result(checked: Checked, signature: Signature, answers: Answers) -> AuthResult:
    if signature.failed is not None:
        return signature.result(signature.failed.result, signature.failed.reason)
    try:
        return signature.result("pass", checked.check(signature.tags, signature.names, signature.field, answers))
    except NotPassed as failed:
        return signature.result(failed.result, failed.reason)
    except Exception as error:  # noqa: BLE001 - no signature may block a mail for ever
        log.error("signature_not_verified", kind=type(error).__name__)
        return signature.result("permerror", "it cannot be verified")


def _text(octets: bytes) -> str:
    return octets.decode("ascii", "replace")


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Verifies, and adds the results under our `authserv_id`."""

    verifier: Verifier
    authserv_id: str

    async def verified(self, message: bytes) -> tuple[AuthResult, ...]:
        """The results for a message that is sealed for us, as it arrived."""
        results = await self.verifier.both(message)
        log.debug("signatures_verified", results=[f"{each.method}={each.result}" for each in results])
        return results

    async def with_results(self, original: bytes, results: Sequence[AuthResult]) -> bytes:
        """The opened original with our results on top; results in it that claim to be ours are removed."""
        original = await self.without_forged(original)
        return results_field(self.authserv_id, results) + original

    async def without_forged(self, message: bytes) -> bytes:
        """A message from outside, without results that claim to be ours."""
        return await off_loop(mime.work(message), without_forged, message, self.authserv_id)


def arrivals(config: Config) -> Arrivals | None:
    """The verifier configured in [dkim]; None without one."""
    table = config.dkim
    if table is None or not table.verify:
        return None
    return Arrivals(Verifier(KeyRecords(table.dns_servers)), table.authserv_id or config.site.hostname)
