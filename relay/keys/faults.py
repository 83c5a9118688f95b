"""What a KME's refusal means: one of a few kinds, each with its error and with what the client does then.
Standard: ETSI GS QKD 014 V1.1.1, clauses 5.2 to 5.4 and 6.5 (errors), and what real KMEs answer instead.

Kinds, and the errors (beside those of relay/errors.py) that carry them::

    unreachable    KMEUnreachable       try again; counts against the breaker
                   KMEUnanswered        sent, and no whole answer came: it may have been carried out
                   KMEFailed            500 to enc_keys: the same, and asking for less may help
    busy           KMEBusy              429, or Retry-After: try again, and not before it says
                   NotAsked             nothing was sent: the breaker is open, or the KME wants to be left alone
    exhausted      KMEExhausted         too few keys: wait for the link, ask for less; the breaker does not count it
    bad_request    KMERefusedRequest    the KME does not like the request's form: asking for less may help
    misconfigured  KMEMisconfigured     a person has to act: no second attempt, and the breaker opens at once
    not_found      KeyNotFound          dec_keys: lag or loss; KeysMissing carries the keys that did come

Any mail can name keys that do not exist, so a reply to dec_keys reveals nothing of the KME. A 404 with HTML, or without
a message, is not about a key: it comes from a proxy, or the path is wrong. AmbiguousReply is settled by asking for the
status, and is "not found" where that is answered. A shortage has as many wordings as there are KMEs. So a refusal of
enc_keys is "exhausted" where the status reports fewer keys than were asked for, whatever its words. 404 and 503 without
such words are "exhausted" where the status does not say. After Retry-After, fresh keys are left alone in any case.
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
"""About one key where they answer dec_keys (5.4: "not named as a slave of that key"), or about us."""
GATEWAY_CODES = (502, 504)
"""A gateway's word that the KME behind it did not answer it; the KME may have done what was asked."""
FAILED_CODE = 500
"""The KME has failed at what it was asked: it may have issued the keys, unless it has too few."""


class Call(StrEnum):
    """The three calls of GS QKD 014, table 1."""

    STATUS = "status"
    ENC_KEYS = "enc_keys"
    DEC_KEYS = "dec_keys"


class KMEUnanswered(KMEUnreachable):
    """The request was sent and no whole answer came: the KME may have carried it out."""


class KMEFailed(KMEUnanswered):
    """The KME said that it failed at a request for fresh keys, of which it has enough: it may have issued them."""


class KMEBusy(KMEUnreachable):
    """The KME asks us to come back later: after `retry_after` seconds where it says when."""

    def __init__(self, cause: str, retry_after: float | None = None) -> None:
        super().__init__(cause)
        self.retry_after = retry_after


class NotAsked(KMEBusy):
    """Nothing was sent: the KME's breaker is open, or it asked to be left alone until later."""


class KMERefusedRequest(KMEMisconfigured):
    """The KME does not accept the form of the request, such as a number or size beyond its limits."""


class RepliedNotFound(KeyNotFound):
    """The KME said that it does not know one or more of the keys; its reply has this `body` and `http_status`."""

    def __init__(self, cause: str, body: bytes | bytearray = b"", http_status: int = 0) -> None:
        super().__init__(cause)
        self.body = body
        self.http_status = http_status


class AmbiguousReply(KeyUnavailable):
    """A reply whose subject the status will show: the keys, or else the KME, which is what `meant` says.

    `otherwise` is what it means where `meant` says that there are too few keys, and the status reports enough.
    """

    def __init__(self, meant: KeyUnavailable, body: bytes | bytearray, otherwise: KeyUnavailable | None = None) -> None:
        super().__init__(str(meant))
        self.meant = meant
        self.body = body
        self.otherwise = otherwise


class KeysMissing(KeyNotFound):
    """Some of the keys asked for did not come; `found` has those that did, `missing` the IDs of the others.

    `certain` False means that the KME refused the request without a word on which keys it lacks.
    """

    def __init__(self, cause: str, found: Sequence[Key], missing: Sequence[str], *, certain: bool = True) -> None:
        super().__init__(cause)
        self.certain = certain
        self.found = list(found)
        self.missing = list(missing)


@dataclass(frozen=True, slots=True)
class ErrorRule:
    """One line of the setting `errors`: what a reply of this KME means, against the usual reading.

    `code` is the HTTP status; `call` None means every call; `text` is looked for in the message, in any case.
    """

    means: KMEFault
    code: int
    call: Call | None = None
    text: str = ""

    def matches(self, call: Call, code: int, message: str) -> bool:
        """Whether this rule speaks of such a reply."""
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
    """What the first rule says that matches a reply with `http_status` and this message, if one does."""
    return next((rule.means for rule in rules if rule.matches(call, code, message)), None)


def says_why(code: int, message: str, *, of_the_kme: bool) -> bool:
    """Whether a refusal with this message says more than that there is nothing: so does a proxy, or a wrong path."""
    return of_the_kme and message.lower() != responses.get(code, "").lower()


def says_shortage(message: str) -> bool:
    """Whether the words of a refusal are about too few keys."""
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
    """Whether only the status can show what a reply meant, which was read as `error`.

    To dec_keys: whether it is about the key or about the KME. To enc_keys: whether the KME has too few keys now.
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
    """How a request ended, for the label of the metric."""
    return _OUTCOMES.get(type(error), "unreachable")


def error_of(fault: KMEFault, cause: str, retry_after: float | None = None) -> KeyUnavailable:
    """The typed error for a kind; one that says when to come back is KMEBusy, whatever its code was."""
    if fault is KMEFault.BUSY or (fault is KMEFault.UNREACHABLE and retry_after is not None):
        return KMEBusy(cause, retry_after)
    return _ERRORS[fault](cause)
