"""Mail domains as certificates and peer documents write them: in ASCII, in lower case.
Standard: A-labels (RFC 5890, 2.3.2.1) by Punycode (RFC 3492).
"""

from __future__ import annotations

import re
import unicodedata

_ASCII_DOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")


def is_ascii_domain(domain: str) -> bool:
    """Whether it is in the form that this package works with."""
    return _ASCII_DOMAIN.fullmatch(domain) is not None


def ascii_domain(domain: str) -> str:
    """A domain of relay.toml in A-labels: `bücher.example` is `xn--bcher-kva.example`."""
    return ".".join(map(_a_label, domain.lower().split(".")))


def _a_label(label: str) -> str:
    if label.isascii():
        return label
    return "xn--" + unicodedata.normalize("NFC", label).encode("punycode").decode("ascii")
