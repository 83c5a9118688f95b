"""The canonical spelling of mailboxes and mail domains: two addresses with equal spelling are the same mailbox.
Standard: relay/FORMAT.md, 7; RFC 5321 4.1.2 and RFC 6531 3.3 (local part), RFC 5890 and RFC 5892 (domain).

Planner, sealed envelope, opening and deliveries identify a mailbox by `folded_mailbox` alone. Policies put one
layer on top, for file names and patterns, which also ignore the case of a local part (policy/names.py).
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from relay.formats.characters import casefold, is_assigned, is_printable, lower, nfc, nfkc

MAX_ADDRESS = 1000
"""Maximum length of an address, in characters: an SMTP command line holds fewer octets."""
MAX_LABEL = 256
"""Maximum length of a label, in characters: a longer one has more than 63 octets as an A-label."""
MAX_COMPOSED_LABEL = 59
"""Maximum length of a label in NFC, in characters: Punycode needs one for each, after "xn--"."""

_DOT_STRING = re.compile(r'[^\x00-\x20\x7f-\x9f"(),.:;<>@\[\\\]]+(?:\.[^\x00-\x20\x7f-\x9f"(),.:;<>@\[\\\]]+)*')
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_LOCAL = re.compile(rf'{_DOT_STRING.pattern}|"(?:[^"\\<>]|\\["\\])*"')
_ASCII_DOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_LITERAL = re.compile(r"\[[a-z0-9.:-]{1,255}\]")
_LETTER_DIGITS = frozenset({"Ll", "Lo", "Lm", "Mn", "Mc", "Nd"})
"""RFC 5892, 2.1, without the capitals."""
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""RFC 5892, 2.3: ignorable letters and marks, which other programs may drop."""


@lru_cache(maxsize=1024)
def folded_mailbox(address: str) -> str:
    """The canonical spelling of an address, valid or not; one without a domain is unchanged."""
    local, at, domain = address.rpartition("@")
    return one_quoting(local) + at + folded_domain(domain) if at else address


def is_folded(address: str, *, local_alone: bool = False) -> bool:
    """Whether this is an address in canonical spelling; with `local_alone` it may have no domain."""
    local = _LOCAL.match(address)
    if local is None or not is_printable(address) or one_quoting(local[0]) != local[0]:
        return False
    at, domain = local.end(), local.end() + 1
    if at == len(address):
        return local_alone
    return address[at] == "@" and bool(_ASCII_DOMAIN.fullmatch(address, domain) or _LITERAL.fullmatch(address, domain))


def one_quoting(local: str) -> str:
    """The canonical quoting of a local part: quotes only if needed, and no redundant backslash."""
    if _DOT_STRING.fullmatch(local):
        return local
    quoted = _QUOTED.fullmatch(local)
    text = re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL) if quoted else local
    if _DOT_STRING.fullmatch(text):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def folded_domain(domain: str) -> str:
    """A domain in comparable form; an invalid one, too."""
    if domain.isascii():
        return domain.lower()
    try:
        return fold_domain(domain)
    except ValueError:
        return lower(domain)


@lru_cache(maxsize=1024)
def fold_domain(domain: str) -> str:
    """A domain in lower case and A-labels (`Bücher.example` is `xn--bcher-kva.example`).

    Raises ValueError for anything else than dot-separated labels of letters, digits, "-" and "_". The
    A-label is that of IDNA 2008. Only case is mapped. What another program may map (full-width letters, invisible
    marks, other dots) is refused, because the next hop would see another domain.
    """
    if len(domain) > MAX_ADDRESS:
        raise ValueError(f"{domain[:80]!r}... is longer than {MAX_ADDRESS} characters")
    folded = domain.lower() if domain.isascii() else ".".join(map(_a_label, domain.split(".")))
    if not _ASCII_DOMAIN.fullmatch(folded):
        raise ValueError(f"{domain[:80]!r} is not a mail domain")
    return folded


def is_folded_domain(domain: str) -> bool:
    """Whether this is a domain in the form that `fold_domain` returns."""
    return _ASCII_DOMAIN.fullmatch(domain) is not None


def _a_label(label: str) -> str:
    if label.isascii():
        return label.lower()
    if len(label) > MAX_LABEL:
        raise ValueError(f"{label[:80]!r}... is longer than a label can be")
    folded = nfc(lower(label))
    # Exceptions of RFC 5892, 2.6: sharp s and final sigma, unstable and letters all the same; U+3007, zero.
    usual = folded.replace("\xdf", "ss").replace("\u03c2", "\u03c3")
    stable = nfkc(casefold(usual)) == usual and is_assigned(folded) and not _INVISIBLE.search(folded)
    letters = all(char in "-\u3007" or unicodedata.category(char) in _LETTER_DIGITS for char in folded)
    if not stable or not letters or folded.isascii() or len(folded) > MAX_COMPOSED_LABEL:
        raise ValueError(f"{label[:80]!r} is not a label of letters and digits in their normal form")
    return "xn--" + folded.encode("punycode").decode("ascii")
