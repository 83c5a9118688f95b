"""What is said of a mail to a next hop with these service extensions, or why it cannot be said.
Standard: RFC 1870 (SIZE), RFC 6152 (8BITMIME), RFC 6531 (SMTPUTF8), RFC 3461 6.2 (DSN), Postfix's XFORWARD_README.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from relay.errors import NextHopRefused
from relay.mail import Mail, Origin, Recipient

XFORWARD_LINE_OCTETS = 510
"""The longest XFORWARD command, without CRLF."""
XFORWARD_VALUE_OCTETS = 255


@dataclass(frozen=True, slots=True)
class Commands:
    """The commands of one mail transaction; in place of a RCPT there may be the reason why it is not possible."""

    origin: tuple[bytes, ...]
    mail: bytes
    recipients: tuple[bytes | NextHopRefused, ...]


def commands(mail: Mail, extensions: Mapping[str, str]) -> Commands:
    """The commands for a next hop that offers `extensions` (keyword in upper case, parameters).

    Raises NextHopRefused where it lacks one that the mail cannot do without.
    """
    return Commands(
        tuple(_xforward(mail.origin, extensions.get("XFORWARD", "").upper().split())),
        _mail(mail, extensions),
        tuple(_rcpt(recipient, mail, extensions) for recipient in mail.envelope.recipients),
    )


def _mail(mail: Mail, extensions: Mapping[str, str]) -> bytes:
    envelope = mail.envelope
    parts = [f"MAIL FROM:<{envelope.sender}>"]
    if "SIZE" in extensions:
        _check_size(len(mail.message), extensions["SIZE"])
        parts.append(f"SIZE={len(mail.message)}")
    if not mail.message.isascii():
        if "8BITMIME" not in extensions:
            raise NextHopRefused("the message has 8-bit octets, and the next hop does not offer 8BITMIME", "5.6.3")
        parts.append("BODY=8BITMIME")
    if envelope.smtputf8:
        if "SMTPUTF8" in extensions:
            parts.append("SMTPUTF8")
        elif not envelope.sender.isascii() or not mail.message.partition(b"\r\n\r\n")[0].isascii():
            raise NextHopRefused("sender or header are UTF-8, and the next hop does not offer SMTPUTF8", "5.6.7")
    if "DSN" in extensions:
        parts += [f"RET={envelope.ret}"] if envelope.ret else []
        parts += [f"ENVID={envelope.envid}"] if envelope.envid else []
    return " ".join(parts).encode()


def _rcpt(recipient: Recipient, mail: Mail, extensions: Mapping[str, str]) -> bytes | NextHopRefused:
    if not recipient.address.isascii() and not (mail.envelope.smtputf8 and "SMTPUTF8" in extensions):
        return NextHopRefused("the address is UTF-8, and the next hop does not offer SMTPUTF8", "5.6.7")
    parts = [f"RCPT TO:<{recipient.address}>"]
    if "DSN" in extensions:
        parts += [f"NOTIFY={recipient.notify}"] if recipient.notify else []
        parts += [f"ORCPT={recipient.orcpt}"] if recipient.orcpt else []
    return " ".join(parts).encode()


def _check_size(octets: int, limit: str) -> None:
    """A limit of 0, or none, says nothing (RFC 1870, 4)."""
    if limit.isdecimal() and 0 < int(limit[:20]) < octets:
        raise NextHopRefused(f"the message has {octets} octets, the next hop takes {limit[:20]}", "5.3.4")


def _xforward(origin: Origin, offered: list[str]) -> Iterator[bytes]:
    """All attributes that the next hop lists, also unknown ones: it would keep those of the mail before."""
    address = f"IPV6:{origin.addr}" if ":" in origin.addr else origin.addr
    known = {
        "NAME": origin.name,
        "ADDR": address,
        "PORT": origin.port,
        "PROTO": origin.proto,
        "HELO": origin.helo,
        "IDENT": origin.ident,
        "SOURCE": origin.source,
    }
    line = b""
    for name, value in known.items():
        if name not in offered:
            continue
        attribute = b" " + name.encode() + b"=" + (_xtext(value) or b"[UNAVAILABLE]")
        if len(line) + len(attribute) > XFORWARD_LINE_OCTETS:
            yield line
            line = b""
        line = (line or b"XFORWARD") + attribute
    if line:
        yield line


def _xtext(value: str) -> bytes:
    """RFC 3461 4, of at most XFORWARD_VALUE_OCTETS; a longer value is taken for unknown."""
    encoded = re.sub(
        rb"[^\x21-\x7e]|[+=]", lambda octet: b"+" + octet[0].hex().upper().encode(), value.encode("utf-8", "replace")
    )
    return encoded if len(encoded) <= XFORWARD_VALUE_OCTETS else b""
