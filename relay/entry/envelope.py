"""Reads what MAIL FROM, RCPT TO and XFORWARD say: addresses, the parameters that the relay passes on, the client.
Standard: RFC 5321 4.1.2 (paths), RFC 1870 (SIZE), RFC 6152 (BODY), RFC 6531 (SMTPUTF8), RFC 3461 (DSN, 4: xtext),
Postfix's XFORWARD_README (attributes, [UNAVAILABLE], when they end).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace
from typing import Any

from relay.errors import MessageTooBig, Refuse
from relay.mail import MAILBOX, Envelope, Origin, Recipient

MAX_PATH = 512
"""Maximum path length, in characters; RFC 5321 4.5.3.1.3 asks for 256, and long return paths exist."""
_PATH = re.compile(r'<((?:"(?:[^"\\\x00-\x1f\x7f]|\\[\x20-\x7e])*"|[^"<>\s\x00-\x1f\x7f])*)>(?:\s+(\S.*))?\Z')
_SOURCE_ROUTE = re.compile(r"^@[^:]*:")
_SIZE = re.compile(r"[0-9]{1,20}")
_NOTIFY = re.compile(r"NEVER|(?:SUCCESS|FAILURE|DELAY)(?:,(?:SUCCESS|FAILURE|DELAY))*", re.IGNORECASE)
_XTEXT = re.compile(r"(?:[\x21-\x2a\x2c-\x3c\x3e-\x7e]|\+[0-9A-F]{2})+")
_ORCPT = re.compile(rf"[A-Za-z0-9-]+;{_XTEXT.pattern}")
_UTF8_ORCPT = re.compile(r"utf-8;[^\x00-\x20+=\x7f]+", re.IGNORECASE)
"""RFC 6533, 3: where SMTPUTF8 is spoken."""
_NOT_SHOWN = re.compile(r"[^\x21-\x7e]|[()<>\\]")

XFORWARD = "XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE"
"""The extension, by which a trusted mail server says who its own client was."""
_ATTRIBUTES = {word: word.lower() for word in XFORWARD.split()[1:]}
_UNAVAILABLE = ("[UNAVAILABLE]", "[TEMPUNAVAIL]")


class BadParameter(Refuse):
    """A command that the client must correct; the reply says which part of it."""

    def __init__(self, code: int, status: str, text: str) -> None:
        self._reply = f"{code} {status} {text}"
        super().__init__(self._reply)

    @property
    def reply(self) -> str:
        """The reply as it was given."""
        return self._reply


def parse_mail(arg: str | None, size_limit: int, ignored: frozenset[str] = frozenset()) -> tuple[Envelope, int]:
    """The envelope of `FROM:<sender> [parameters]`, without recipients yet, and the declared size or 0.

    `size_limit` and the size are in octets; parameters that are `ignored` may have any value. Raises BadParameter or
    MessageTooBig.
    """
    sender, parameters = _split("FROM:", arg)
    smtputf8 = False
    ret = envid = None
    size = 0
    for name, value in parameters.items():
        match name:
            case "SIZE" if value and _SIZE.fullmatch(value):
                size = int(value)
                if size > size_limit:
                    raise MessageTooBig(f"SIZE={value}, the limit is {size_limit} octets")
            case "BODY" if value and value.upper() in ("7BIT", "8BITMIME"):
                pass  # what is sent on says of itself whether it is 8-bit
            case "SMTPUTF8" if value is None:
                smtputf8 = True
            case "RET" if value and value.upper() in ("FULL", "HDRS"):
                ret = value.upper()
            case "ENVID" if value and len(value) <= 100 and _XTEXT.fullmatch(value):
                envid = value
            case _ if name in ignored:
                pass
            case _:
                raise BadParameter(555, "5.5.4", f"MAIL parameter not understood: {printable(name)}")
    if not sender.isascii():
        _check_encoding(sender, utf8=smtputf8)
    return Envelope(sender, (), smtputf8=smtputf8, ret=ret, envid=envid), size


def parse_rcpt(arg: str | None, *, utf8: bool) -> Recipient:
    """The recipient of `TO:<address> [parameters]`; `utf8` says whether SMTPUTF8 was asked for.

    Raises BadParameter.
    """
    address, parameters = _split("TO:", arg)
    if not address:
        raise BadParameter(501, "5.1.3", "A recipient is needed")
    notify = orcpt = None
    for name, value in parameters.items():
        match name:
            case "NOTIFY" if value and _NOTIFY.fullmatch(value):
                notify = value.upper()
            case "ORCPT" if value and len(value) <= 500 and _is_orcpt(value, utf8=utf8):
                orcpt = value
            case _:
                raise BadParameter(555, "5.5.4", f"RCPT parameter not understood: {printable(name)}")
    if not address.isascii():
        _check_encoding(address, utf8=utf8)
    return Recipient(address, notify=notify, orcpt=orcpt)


def _is_orcpt(value: str, *, utf8: bool) -> bool:
    return bool(_ORCPT.fullmatch(value) or (utf8 and _UTF8_ORCPT.fullmatch(value)))


def printable(text: str) -> str:
    """At most 100 characters of client text, safe in a reply, a log line or a comment of a header field."""
    return _NOT_SHOWN.sub("?", text)[:100]


def _split(keyword: str, arg: str | None) -> tuple[str, dict[str, str | None]]:
    """Address and parameters (names in upper case, None for those without a value)."""
    if not arg or arg[: len(keyword)].upper() != keyword:
        raise _bad_syntax(keyword)
    match = _PATH.match(arg[len(keyword) :].strip())
    if match is None:
        raise _bad_syntax(keyword)
    if len(match[1]) > MAX_PATH:
        raise BadParameter(501, "5.1.3", "Path too long")
    address = _SOURCE_ROUTE.sub("", match[1])
    if address and address.lower() != "postmaster" and not MAILBOX.fullmatch(address):
        raise BadParameter(553, "5.1.3", "The address needs a domain")
    parameters: dict[str, str | None] = {}
    for word in (match[2] or "").split():
        name, equals, value = word.partition("=")
        if (equals and not value) or name.upper() in parameters:
            raise _bad_syntax(keyword)
        parameters[name.upper()] = value if equals else None
    return address, parameters


def _bad_syntax(keyword: str) -> BadParameter:
    return BadParameter(501, "5.5.4", f"Syntax: {keyword}<address> [parameters]")


def _check_encoding(address: str, *, utf8: bool) -> None:
    try:
        address.encode("utf-8" if utf8 else "ascii")
    except UnicodeEncodeError as error:
        raise BadParameter(553, "5.6.7", "The address needs SMTPUTF8, in valid UTF-8") from error


def parse_xforward(arg: str | None, known: Origin) -> Origin:
    """What is known of the original client after this command; values that it does not name stay.

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
    return replace(known, **changes)


def _value(name: str, text: str) -> str:
    """One attribute decoded, "" where the client does not have it; raises BadParameter."""
    if text.upper() in _UNAVAILABLE:
        return ""
    value = _decoded(text)
    if name == "ADDR":
        value = re.sub(r"^IPv6:", "", value, flags=re.IGNORECASE)
    if len(value) > 255 or (name in _FORMS and not _FORMS[name](value)):
        raise BadParameter(501, "5.5.4", f"Bad {name} value")
    return value


def _decoded(text: str) -> str:
    """The text that the xtext stands for; characters that could not stand in a log line become "?"."""
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
