"""Formats numbers, times and reasons for people.
Times are UTC, as in the log; numbers match those of /metrics.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime

from relay.errors import RelayError
from relay.status.page.html import Html, element

_UNITS = (("day", 86_400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))
_OURS = {
    "BadStructure": "The sealed message is not in a form that the relay accepts.",
    "Gone": "The next hop cannot be reached, or ended the connection.",
    "KMEBusy": "The KME asks the relay to come back later.",
    "KMEMisconfigured": "The KME does not accept the relay, or the relay does not accept the KME.",
    "KeyNotFound": "The KME does not know the key: it comes later, was lost, or was given out before.",
    "KeysMissing": "Some of the keys asked for did not come.",
    "LoginRefused": "The IMAP server does not accept the login.",
    "MailboxRefused": "The IMAP server refused a command.",
    "NotForUs": "It was sealed for a certificate that is not one of this site.",
    "NotTaken": "The next hop did not take the mail.",
    "OtherSize": "The KME gave a key of another size than was asked for.",
    "OthersCanWrite": "Other users can change a file of the relay.",
    "PolicyHolds": "Policy says hold, and no level that it lists can be done, whatever keys there are.",
    "SealedForUs": "Sealed mail came to the listener of outgoing mail, where it cannot be opened.",
    "Silent": "The next hop did not answer in time.",
    "Unforeseen": "A fault that the relay does not know; the log has it.",
    "Stopped": "The relay was stopped, or the client left.",
    "NotTried": "Another recipient's trouble held it before its turn came.",
}


def number(value: float) -> Html:
    """A count, such as 12,345, with the exact value for programs."""
    return element("data", f"{value:,.0f}", value=f"{value:.0f}") if value >= 1000 else Html(f"{value:.0f}")


def duration(seconds: float) -> str:
    """A duration, such as 3 h 20 min; from ten of the larger unit on only that, to change less often."""
    if math.isinf(seconds):
        return "for ever"
    for at, (unit, size) in enumerate(_UNITS):
        if seconds >= size or size == 1.0:
            whole = int(seconds // size)
            if whole >= 10 or size == 1.0:
                return f"{whole} {unit}s" if unit == "day" else f"{whole} {unit}"
            rest = int((seconds - whole * size) // _UNITS[at + 1][1])
            unit = f"{unit}s" if unit == "day" and whole != 1 else unit
            return f"{whole} {unit}" + (f" {rest} {_UNITS[at + 1][0]}" if rest else "")
    return ""


def bits(value: float) -> str:
    """A rate, in bits per second."""
    return f"{value / 1000:,.1f} kbit/s" if value >= 1000 else f"{value:,.0f} bit/s"


def clock(seconds: float, form: str = "%Y-%m-%d %H:%M UTC") -> Html:
    """A time, in seconds since 1970."""
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return element("span", "unknown")
    return element("time", moment.strftime(form), datetime=moment.strftime("%Y-%m-%dT%H:%M:%SZ"))


def reason(name: str) -> str:
    """The meaning of an error's class: from the table above, else the first paragraph of its docstring."""
    if name in _OURS:
        return _OURS[name]
    for each in _errors(RelayError):
        if each.__name__ == name and each.__doc__:
            return " ".join(each.__doc__.split("\n\n")[0].split())
    return ""


def _errors(root: type[RelayError]) -> Iterator[type[RelayError]]:
    for each in root.__subclasses__():
        yield each
        yield from _errors(each)
