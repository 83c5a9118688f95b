"""Classifies what a KME said: the one place that gives a reply its meaning, as a typed error.
Standard: ETSI GS QKD 014 V1.1.1, clauses 5.2 to 5.4 and 6.5 (errors), and the words of KMEs that were met.

Kinds, and the errors (beside those of relay/errors.py) that carry them::

    not_found      KeyNotFound          dec_keys: the key is not there; KeysMissing carries the keys that did arrive
    exhausted      KMEExhausted         enc_keys: too few keys: wait for the link, ask for less
    busy           KMEBusy              429, or Retry-After: not before it says
                   NotAsked             nothing was sent: a breaker is open, or after Retry-After
    unreachable    KMEUnreachable       the KME, or what stands before it, fails
                   KMEUnanswered        sent without a complete answer, or 500 to enc_keys: it may have been carried out
    bad_request    KMERefusedRequest    the request's form is refused: asking for less may help
    misconfigured  KMEMisconfigured     someone has to act

One rule: "not there", the only lasting answer, is what the standard and KMEs that were met say in so many words. All
else is a fault, whatever its status and form: it is tried again, and its error has the words. Each KME words a shortage
differently, so a refusal of enc_keys is also "exhausted" if the status then reports fewer keys than requested.
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
from relay.keys.replies import ErrorText
from relay.keys.types import Key


class KMEFault(StrEnum):
    """The kinds of refusal; the values are those of the setting `errors.means`."""

    UNREACHABLE = "unreachable"
    BUSY = "busy"
    EXHAUSTED = "exhausted"
    BAD_REQUEST = "bad_request"
    MISCONFIGURED = "misconfigured"
    NOT_FOUND = "not_found"


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


class KMEBusy(KMEUnreachable):
    """The KME asks us to retry later: after `retry_after` seconds, if given."""

    def __init__(self, cause: str, retry_after: float | None = None) -> None:
        super().__init__(cause)
        self.retry_after = retry_after


class NotAsked(KMEBusy):
    """Nothing was sent: a breaker is open, or the KME asked for a pause (Retry-After)."""


class KMERefusedRequest(KMEMisconfigured):
    """The KME does not accept the form of the request, such as a number or size beyond its limits."""


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


_NOT_THERE = frozenset({
    "one or more keys specified are not found on kme",  # GS QKD 014, 5.4
    "some of the requested keys do not exist in this kme",  # CreepPork/next-door-key-simulator
    "none of the requested keys exist in this kme",  # next-door-key-simulator of omkar-sarwat/Qumail
    "the given master_sae_id is not involved in any key exchanges",  # the same, without any key for the pair
    "unable, the key was not found by id",  # next-door-key/py-qkd-kme-sim
    "unable, because there are 0 activated keys remaining",  # the same
    "not authorized for requested keys",  # krich11/easy-kme, for a key that it does not know, too
    "element not found",  # thomasarmel/qkd_kme_server
    "key expired",  # a KME in the cloud
    "key not found",
    "key does not exist",
})  # fmt: skip
"""Whole sentences that say of dec_keys that a key is not there, in lower case and without the full stop."""
_EXHAUSTED = (
    "exhaust", "insufficient key", "not enough", "no key", "no more key", "too few", "too low", "keys remaining",
    "generated key count", "than available", "keys are unavailable", "keys unavailable",
)  # fmt: skip


def says_shortage(said: ErrorText) -> bool:
    """Whether a refusal is about too few keys, in the KME's own words."""
    about = said.text.lower()
    return bool(said.sentences) and any(phrase in about for phrase in _EXHAUSTED)


def meaning(call: Call, code: int, said: ErrorText, rules: Iterable[ErrorRule] = ()) -> tuple[KMEFault, bool]:
    """What a reply with HTTP status `code` (not 200) means, and whether that is certain; the first rule wins.

    If it is not, a status call shows whether a refusal of enc_keys is a shortage.
    """
    for rule in rules:
        if rule.matches(call, code, said.text):
            return rule.means, True
    if call is Call.DEC_KEYS and any(each.lower().rstrip(". ") in _NOT_THERE for each in said.sentences):
        return KMEFault.NOT_FOUND, True
    if code == 429:
        return KMEFault.BUSY, True
    if call is Call.ENC_KEYS and code != 401 and says_shortage(said):
        return KMEFault.EXHAUSTED, True
    certain = call is not Call.ENC_KEYS or code in (401, *GATEWAY_CODES)
    # A 404 that says no more is of a proxy whose KME is away, as often as of a wrong path.
    own_words = any(each.lower() != responses.get(code, "").lower() for each in said.sentences)
    if code >= 500 or code in (408, 425) or (code in (404, 410) and not own_words):
        return KMEFault.UNREACHABLE, certain
    return (KMEFault.BAD_REQUEST if code in (400, 413, 422) else KMEFault.MISCONFIGURED), certain


_ERRORS: dict[KMEFault, type[KeyUnavailable]] = {
    KMEFault.UNREACHABLE: KMEUnreachable,
    KMEFault.BUSY: KMEBusy,
    KMEFault.EXHAUSTED: KMEExhausted,
    KMEFault.BAD_REQUEST: KMERefusedRequest,
    KMEFault.MISCONFIGURED: KMEMisconfigured,
    KMEFault.NOT_FOUND: KeyNotFound,
}
_OUTCOMES = {error: str(fault) for fault, error in _ERRORS.items()} | {KMEBadReply: "bad_reply"}


def outcome_of(error: KeyUnavailable) -> str:
    """The outcome of a request, as a metric label."""
    return next(_OUTCOMES[kind] for kind in type(error).__mro__ if kind in _OUTCOMES)


def error_of(
    fault: KMEFault, cause: str, call: Call | None = None, code: int = 0, retry_after: float | None = None
) -> KeyUnavailable:
    """The typed error of a fault of a reply with HTTP status `code`; 0: there was no reply."""
    kind = _ERRORS[fault]
    if fault is KMEFault.UNREACHABLE and retry_after is not None:
        kind = KMEBusy
    elif fault is KMEFault.UNREACHABLE and (code in GATEWAY_CODES or (code == FAILED_CODE and call is Call.ENC_KEYS)):
        kind = KMEUnanswered
    error = KMEBusy(cause, retry_after) if kind is KMEBusy else kind(cause)
    error.http_status = code
    return error
