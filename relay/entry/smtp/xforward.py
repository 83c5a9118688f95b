"""Parses XFORWARD, by which a trusted mail server names its own client.
Standard: Postfix's XFORWARD_README (attributes, [UNAVAILABLE], when they end).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace
from typing import Any

from relay.entry.transaction import BadParameter
from relay.mail import Origin

XFORWARD = "XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE"
"""The EHLO keyword and its attributes."""
_ATTRIBUTES = {word: word.lower() for word in XFORWARD.split()[1:]}
_UNAVAILABLE = ("[UNAVAILABLE]", "[TEMPUNAVAIL]")


def parse_xforward(arg: str | None, origin: Origin) -> Origin:
    """The origin after this command; attributes that it does not name keep their values.

    Raises BadParameter.
    """
    words = (arg or "").split()
    if not words:
        raise BadParameter(501, "5.5.4", "Syntax: XFORWARD attribute=value...")
    changes: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not value or name.upper() not in _ATTRIBUTES:
            raise BadParameter(501, "5.5.4", "Syntax: XFORWARD attribute=value...")
        changes[_ATTRIBUTES[name.upper()]] = _value(name.upper(), value)
    return replace(origin, **changes)


def _value(name: str, text: str) -> str:
    """One decoded attribute, "" if unavailable. Raises BadParameter."""
    if text.upper() in _UNAVAILABLE:
        return ""
    value = _decoded(text)
    if name == "ADDR":
        value = re.sub(r"^IPv6:", "", value, flags=re.IGNORECASE)
    if len(value) > 255 or (name in _FORMS and not _FORMS[name](value)):
        raise BadParameter(501, "5.5.4", f"Bad {name} value")
    return value


def _decoded(text: str) -> str:
    """Decodes xtext; characters not allowed in a log line become "?"."""
    octets = re.sub(r"\+([0-9A-Fa-f]{2})", lambda match: chr(int(match[1], 16)), text)
    return re.sub(r"[^\x20-\x7e]", "?", octets)


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def _is_port(value: str) -> bool:
    return bool(re.fullmatch(r"\d{1,5}", value)) and int(value) < 65536


def _is_source(value: str) -> bool:
    return value in ("LOCAL", "REMOTE")


_FORMS = {"ADDR": _is_address, "PORT": _is_port, "SOURCE": _is_source}
