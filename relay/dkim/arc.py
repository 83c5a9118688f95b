"""Verifies a message's ARC chain, and adds a set with our results for later hops.
Standard: RFC 8617 4 (fields), 5.1 (sealing), 5.2 (validating); dkimpy walks the chain, OpenSSL checks each signature.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Literal

import dkim
import structlog

from relay.dkim.canonical import Header, body_hash, canonical
from relay.dkim.checking import Checked, check_times, parse_tags
from relay.dkim.keys import SigningKey
from relay.dkim.records import Answers, NotPassed, Tags, key_name
from relay.dkim.results import AuthResult, payload
from relay.dkim.signing import Clock, content_tags, key_tags, signed_field, signed_names
from relay.formats import mime

log = structlog.get_logger(__name__)

RESULTS, MESSAGE, SEAL = b"arc-authentication-results", b"arc-message-signature", b"arc-seal"
MAX_SETS = 50
"""Maximum number of ARC sets; a longer chain is invalid (RFC 8617, 4.2.1)."""
MAX_FIELD_OCTETS = 16_384
"""Maximum length of a field of a set, in octets; no real one is as long."""


class ARCChain:
    """The ARC chain of one message, with `length` sets; `result` is valid after `verify`."""

    def __init__(self, header: Header, now: float) -> None:
        """`now` is the time of verification, in seconds since 1970."""
        self._now = now
        self._fields = [(name, raw) for name in (RESULTS, MESSAGE, SEAL) for raw in header.named(name)]
        self._whole = len(self._fields) <= 3 * MAX_SETS and all(len(raw) <= MAX_FIELD_OCTETS for _, raw in self._fields)
        self._seals = [_tags_or_none(raw) for raw in header.named(SEAL)] if self._whole else []
        self.length = max((_instance(raw) for _, raw in self._fields), default=0) if self._whole else MAX_SETS
        self.result: Literal["none", "pass", "fail", "temperror"] = "none"
        self.reason = ""

    @property
    def ended(self) -> bool:
        """Whether a previous hop has declared the chain broken, after which none may add to it (RFC 8617, 5.1.2)."""
        return any(tags.get(b"cv") == b"fail" for tags in self._seals) or self.length >= MAX_SETS

    @property
    def as_result(self) -> AuthResult:
        """Returns the result for Authentication-Results."""
        return AuthResult("arc", self.result, self.reason)

    def key_names(self) -> list[str]:
        """The DNS names of all required keys."""
        return list(self._key_names()) if self._whole else []

    def verify(self, checked: Checked, answers: Answers) -> None:
        """Sets `result`, and `reason` unless it is a pass."""
        if not self._fields:
            return
        if not self._whole:
            self.result, self.reason = "fail", "more or longer fields than a chain has"
            return
        verifying = _DkimpyChain(self._fields, checked, answers, self._now)
        try:
            outcome, _, reason = verifying.verify()
        except Exception as error:  # noqa: BLE001 - no chain may block a mail for ever
            log.debug("arc_chain_not_verified", kind=type(error).__name__)
            outcome, reason = dkim.CV_Fail, "malformed"
        if outcome == dkim.CV_Pass:
            self.result = "pass"
        else:
            self.result = "temperror" if verifying.trouble else "fail"
            self.reason = verifying.trouble or reason

    def _key_names(self) -> Iterator[str]:
        for name, raw in self._fields:
            if name != RESULTS:
                try:
                    yield key_name(parse_tags(raw))
                except NotPassed:
                    continue  # reported by verification


class _DkimpyChain(dkim.ARC):  # type: ignore[misc] # dkimpy has no types
    """dkimpy's chain validation, with our check of each signature."""

    def __init__(self, fields: Sequence[tuple[bytes, bytes]], checked: Checked, answers: Answers, now: float) -> None:
        silent = logging.getLogger(f"{__name__}.silent")
        silent.disabled = True  # dkimpy logs what it reads
        super().__init__(logger=silent)
        self.headers = [(name, b" " + canonical(raw).partition(b":")[2]) for name, raw in fields]
        self.trouble = ""
        self._raw = checked
        self._answers = answers
        self._now = now

    def verify_sig(
        self, sig: Tags, include_headers: list[bytes], sig_header: tuple[bytes, bytes], dnsfunc: object
    ) -> bool:
        """Checks one signature of one set."""
        name, value = sig_header
        if b"l" in sig:
            return False  # l= leaves octets unsigned
        # A second From added above the signed one must be detected.
        names = [*include_headers, b"from"] if b"from" in include_headers else include_headers
        try:
            check_times(sig, self._now)
            self._raw.check(sig, names, name + b":" + value, self._answers)
        except NotPassed as failed:
            if failed.result == "temperror":
                self.trouble = failed.reason
            return False
        return True


class ARCSealer:
    """Adds ARC sets under one of the site's RSA keys (the only type in RFC 8617, 4.1)."""

    def __init__(self, key: SigningKey, authserv_id: str, clock: Clock = time.time) -> None:
        self._key = key
        self._authserv_id = authserv_id
        self._clock = clock

    def seal(self, message: bytes, chain: ARCChain, results: Sequence[AuthResult]) -> bytes:
        """The fields of the next set, to be added on top; b"" if the chain has ended.

        `chain` is the verified chain of the message; `results` are those of its arrival.
        """
        if chain.ended or chain.result == "temperror":
            return b""
        end, begin = mime.bounds(message)
        header, body = Header(message[:end]), memoryview(message)[begin:]
        number = ("i", str(chain.length + 1))
        signer_tags = [number, *key_tags(self._key, str(int(self._clock())))]
        all_results = (*(each for each in results if each.method != "arc"), chain.as_result)
        results_header = (
            f"ARC-Authentication-Results: i={number[1]}; {payload(self._authserv_id, all_results)}\r\n".encode()
        )
        names = signed_names(header)
        digest = base64.b64encode(body_hash(body).digest).decode()
        content = signed_field(
            "ARC-Message-Signature",
            [*signer_tags, *content_tags(names, digest)],
            b"".join(header.chosen(names)),
            self._key,
        )
        before = b"" if chain.result == "fail" else b"".join(_sets(header, chain.length))
        seal = signed_field(
            "ARC-Seal",
            [*signer_tags, ("cv", chain.result)],
            before + canonical(results_header) + canonical(content),
            self._key,
        )
        return seal + content + results_header


def _sets(header: Header, length: int) -> Iterator[bytes]:
    """The fields of all sets in the order of a seal, oldest first (RFC 8617, 5.1.1)."""
    fields = [(_instance(raw), raw) for name in (RESULTS, MESSAGE, SEAL) for raw in header.named(name)]
    yield from (canonical(raw) for number, raw in sorted(fields, key=itemgetter(0)) if 1 <= number <= length)


def _instance(raw: bytes) -> int:
    """The i= tag, which comes first in Authentication-Results and anywhere in the others; 0 without one."""
    for tag in canonical(raw).partition(b":")[2].split(b";"):
        name, _, value = tag.partition(b"=")
        if name.strip() == b"i" and value.strip().isdigit() and len(value) < 5:
            return int(value)
    return 0


def _tags_or_none(raw: bytes) -> Tags:
    try:
        return parse_tags(raw)
    except NotPassed:
        return {}
