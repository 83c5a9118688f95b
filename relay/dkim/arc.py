"""Verifies a message's ARC chain.
Standard: RFC 8617 4 (fields), 5.2 (validating); dkimpy walks the chain, OpenSSL checks each signature.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Literal

import dkim
import structlog

from relay.dkim.canonical import Header, canonical
from relay.dkim.checking import Checked, check_times, parse_tags
from relay.dkim.records import Answers, NotPassed, Tags, key_name
from relay.dkim.results import AuthResult

log = structlog.get_logger(__name__)

RESULTS, MESSAGE, SEAL = b"arc-authentication-results", b"arc-message-signature", b"arc-seal"
MAX_SETS = 50
"""Maximum number of ARC sets; a longer chain is invalid (RFC 8617, 4.2.1)."""
MAX_FIELD_OCTETS = 16_384
"""Maximum length of a field of a set, in octets; no real one is as long."""


class ARCChain:
    """The ARC chain of one message; `result` is valid after `verify`."""

    def __init__(self, header: Header, now: float) -> None:
        """`now` is the time of verification, in seconds since 1970."""
        self._now = now
        self._fields = [(name, raw) for name in (RESULTS, MESSAGE, SEAL) for raw in header.named(name)]
        self._whole = len(self._fields) <= 3 * MAX_SETS and all(len(raw) <= MAX_FIELD_OCTETS for _, raw in self._fields)
        self.result: Literal["none", "pass", "fail", "temperror"] = "none"
        self.reason = ""

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
