"""Classifies a KME's refusals: a few kinds, each with its error and the client's reaction.
Standard: ETSI GS QKD 014 V1.1.1, clauses 5.2 to 5.4 and 6.5 (errors), and answers of real KMEs.

Kinds, and the errors (beside those of relay/errors.py) that carry them::

    unreachable    KMEUnreachable       try again; counts against the breaker
                   KMEUnanswered        sent without a complete answer: it may have been carried out
                   KMEFailed            500 to enc_keys: the same, and asking for less may help
    busy           KMEBusy              429, or Retry-After: try again, and not before it says
                   NotAsked             nothing was sent: the breaker is open, or after Retry-After
    exhausted      KMEExhausted         too few keys: wait for the link, ask for less; the breaker does not count it
    bad_request    KMERefusedRequest    the KME refuses the request's form: asking for less may help
    misconfigured  KMEMisconfigured     someone has to act: no second attempt, and the breaker opens at once
    not_found      KeyNotFound          dec_keys: lag or loss; KeysMissing carries the keys that did arrive

Any mail can name keys that do not exist, so a reply to dec_keys reveals nothing of the KME. A 404 with HTML, or without
a message, is not about a key: it comes from a proxy, or the path is wrong. AmbiguousReply is resolved by a status call,
and is "not found" if that is answered. Each KME words a shortage differently. So a refusal of enc_keys is "exhausted"
if the status reports fewer keys than requested, whatever its text. 404 and 503 without such a text are "exhausted" if
the status does not say. After Retry-After, no fresh keys are requested in any case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from http.client import responses

from relay.errors import (
    KeyNotFound,
    KeyUnavailable,
    KMEBadReply,
    KMEExhausted,
    KMEMisconfigured,
    KMEUnreachable,
)
from relay.keys.types import Key


class KMEFault(StrEnum):
    """The kinds of refusal; the values are those of the setting `errors.means`."""

    UNREACHABLE = "unreachable"
    BUSY = "busy"
    EXHAUSTED = "exhausted"
    BAD_REQUEST = "bad_request"
    MISCONFIGURED = "misconfigured"
    NOT_FOUND = "not_found"


UNAUTHORIZED = (401, 403)
"""For dec_keys about one key (5.4: "not named as a slave of that key"), else about us."""
GATEWAY_CODES = (502, 504)
"""Codes of a gateway whose KME did not answer; the KME may have carried out the request."""
FAILED_CODE = 500
"""The KME failed to carry out the request: it may have issued the keys, unless it has too few."""


class Call(StrEnum):
    """The three calls of GS QKD 014, table 1."""

    STATUS = "status"
    ENC_KEYS = "enc_keys"
    DEC_KEYS = "dec_keys"


class KMEUnanswered(KMEUnreachable):
    """The request was sent without a complete answer: the KME may have carried it out."""


class KMEFailed(KMEUnanswered):
    """The KME failed at a request for fresh keys although it has enough: it may have issued them."""


class KMEBusy(KMEUnreachable):
    """The KME asks us to retry later: after `retry_after` seconds, if given."""

    def __init__(self, cause: str, retry_after: float | None = None) -> None:
        super().__init__(cause)
        self.retry_after = retry_after


class NotAsked(KMEBusy):
    """Nothing was sent: the KME's breaker is open, or it asked for a pause (Retry-After)."""


class KMERefusedRequest(KMEMisconfigured):
    """The KME does not accept the form of the request, such as a number or size beyond its limits."""


class RepliedNotFound(KeyNotFound):
    """The KME reported unknown keys; its reply has this `body` and `http_status`."""

    def __init__(self, cause: str, body: bytes | bytearray = b"", http_status: int = 0) -> None:
        super().__init__(cause)
        self.body = body
        self.http_status = http_status


class AmbiguousReply(KeyUnavailable):
    """A reply that a status call resolves: it is about the keys, or else about the KME, with the error `meant`.

    `otherwise` is the error if `meant` reports too few keys, and the status reports enough.
    """

    def __init__(self, meant: KeyUnavailable, body: bytes | bytearray, otherwise: KeyUnavailable | None = None) -> None:
        super().__init__(str(meant))
        self.meant = meant
        self.body = body
        self.otherwise = otherwise


class KeysMissing(KeyNotFound):
    """Some requested keys did not arrive; `found` has those that did, `missing` the IDs of the others.

    `certain` False means that the KME did not say which keys it lacks.
    """

    def __init__(self, cause: str, found: Sequence[Key], missing: Sequence[str], *, certain: bool = True) -> None:
        super().__init__(cause)
        self.certain = certain
        self.found = list(found)
        self.missing = list(missing)


@dataclass(frozen=True, slots=True)
class ErrorRule:
    """One line of the setting `errors`: overrides the usual meaning of a reply.

    `code` is the HTTP status; `call` None means every call; `text` is searched in the message, ignoring case.
    """

    means: KMEFault
    code: int
    call: Call | None = None
    text: str = ""

    def matches(self, call: Call, code: int, message: str) -> bool:
        """Whether this rule applies to such a reply."""
        return self.call in (None, call) and self.code == code and self.text.lower() in message.lower()


_EXHAUSTED = (
    "exhaust", "insufficient", "not enough", "no key", "no more key", "too few", "too low", "keys remaining",
    "generated key count", "than available", "keys are unavailable", "keys unavailable",
)  # fmt: skip
_NOT_FOUND = ("not found", "not exist", "unknown key", "no such key", "expired", "already delivered")
_OF_ENC_KEYS = dict.fromkeys((404, 503), KMEFault.EXHAUSTED)
_OF_DEC_KEYS = dict.fromkeys((*UNAUTHORIZED, 404, 410), KMEFault.NOT_FOUND)
_OF_ANY = {
    **dict.fromkeys((400, 413, 422), KMEFault.BAD_REQUEST),
    **dict.fromkeys((408, 425), KMEFault.UNREACHABLE),
    429: KMEFault.BUSY,
}


def ruled(call: Call, code: int, message: str, rules: Iterable[ErrorRule]) -> KMEFault | None:
    """The fault by the first rule that matches a reply with this HTTP status and message, if any."""
    return next((rule.means for rule in rules if rule.matches(call, code, message)), None)


def says_why(code: int, message: str, *, of_the_kme: bool) -> bool:
    """Whether a refusal has an informative message; those of proxies and wrong paths have none."""
    return of_the_kme and message.lower() != responses.get(code, "").lower()


def says_shortage(message: str) -> bool:
    """Whether the text of a refusal is about too few keys."""
    about = message.lower()
    return any(phrase in about for phrase in _EXHAUSTED)


def classify(call: Call, code: int, message: str, *, why: bool = True) -> KMEFault:
    """The usual kind of a reply with HTTP status `code` (not 200) and this message; `why`: it is about the request."""
    about = message.lower()
    if call is Call.DEC_KEYS and not why and code in (404, 410):
        return KMEFault.MISCONFIGURED
    if call is Call.DEC_KEYS and why and code != 429 and any(phrase in about for phrase in _NOT_FOUND):
        return KMEFault.NOT_FOUND
    if call is Call.ENC_KEYS and code in (400, 403, 422, FAILED_CODE) and says_shortage(message):
        return KMEFault.EXHAUSTED
    specific = {Call.ENC_KEYS: _OF_ENC_KEYS, Call.DEC_KEYS: _OF_DEC_KEYS}.get(call, {})
    usual = KMEFault.UNREACHABLE if code >= 500 else KMEFault.MISCONFIGURED
    return specific.get(code) or _OF_ANY.get(code) or usual


def unclear(call: Call, code: int, message: str, error: KeyUnavailable) -> bool:
    """Whether only the status can show the meaning of a reply, which was read as `error`.

    For dec_keys: about the key or about the KME. For enc_keys: whether the KME has too few keys now.
    """
    if call is Call.DEC_KEYS:
        return code != 429 and not isinstance(error, KeyNotFound | KMERefusedRequest)
    states_shortage = isinstance(error, KMEExhausted) and (code == 200 or says_shortage(message))
    about_us_or_later = code in (200, 401, *GATEWAY_CODES) or isinstance(error, KMEBusy) or states_shortage
    return call is Call.ENC_KEYS and not about_us_or_later


_ERRORS: dict[KMEFault, type[KeyUnavailable]] = {
    KMEFault.UNREACHABLE: KMEUnreachable,
    KMEFault.BUSY: KMEBusy,
    KMEFault.EXHAUSTED: KMEExhausted,
    KMEFault.BAD_REQUEST: KMERefusedRequest,
    KMEFault.MISCONFIGURED: KMEMisconfigured,
    KMEFault.NOT_FOUND: RepliedNotFound,
}
_OUTCOMES = {error: str(fault) for fault, error in _ERRORS.items()} | {
    KMEBadReply: "bad_reply",
    AmbiguousReply: "ambiguous",
}


def outcome_of(error: KeyUnavailable) -> str:
    """The outcome of a request, as a metric label."""
    return _OUTCOMES.get(type(error), "unreachable")


def error_of(fault: KMEFault, cause: str, retry_after: float | None = None) -> KeyUnavailable:
    """The typed error of a fault; with `retry_after` it is KMEBusy, whatever its code."""
    if fault is KMEFault.BUSY or (fault is KMEFault.UNREACHABLE and retry_after is not None):
        return KMEBusy(cause, retry_after)
    return _ERRORS[fault](cause)
