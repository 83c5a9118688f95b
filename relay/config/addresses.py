"""Addresses in relay.toml: where the relay listens, whom it trusts, and the next hops that it connects to.
Standard: each form has one spelling, and what is wrong is answered with an example of what is right.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple


class TCPAddress(NamedTuple):
    """A TCP address: host name or IP address, and port (0 to listen: any free one)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: object) -> TCPAddress:
    """`"127.0.0.1:10025"` or `"[::1]:10025"` as a TCPAddress; raises ValueError."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]/\s]+)):(\d{1,5})", str(text))
    if not isinstance(text, str) or not match or int(match[3]) > 65535:
        raise ValueError('write it as "host:port", for instance "127.0.0.1:10025" or "[::1]:10025"')
    return TCPAddress(match[1] or match[2], int(match[3]))


def parse_socket(text: object) -> TCPAddress | Path:
    """`"127.0.0.1:8891"` as a TCPAddress, `"unix:/run/relay/milter.sock"` as a Path; raises ValueError."""
    if isinstance(text, str) and re.fullmatch(r"unix:/[^\0]+", text):
        return Path(text.removeprefix("unix:"))
    try:
        return parse_address(text)
    except ValueError:
        raise ValueError('write it as "host:port" or "unix:/path/to/socket"') from None


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_networks(value: object) -> tuple[Network, ...]:
    """`["192.0.2.0/24", "::1"]` as networks; raises ValueError."""
    if not isinstance(value, list | tuple):
        raise ValueError('write a list of networks, for instance ["192.0.2.0/24", "::1"]')  # noqa: TRY004
    return tuple(each if isinstance(each, Network) else ipaddress.ip_network(str(each)) for each in value)


@dataclass(frozen=True, slots=True)
class Server:
    """One next hop: what is spoken there (RFC 5321, RFC 2033), and its TCP address or Unix socket.

    `name` is the host name to which the DNS has given the address, "" where the address stands for itself.
    """

    protocol: Literal["smtp", "lmtp"]
    address: TCPAddress | Path
    name: str = ""

    @property
    def host(self) -> str:
        """The name that its certificate must have; "" for a Unix socket."""
        return self.name or (self.address.host if isinstance(self.address, TCPAddress) else "")

    def __str__(self) -> str:
        if self.protocol == "lmtp":
            return f"lmtp:{self.address}" if isinstance(self.address, Path) else f"lmtp://{self.address}"
        return f"{self.name}[{self.address}]" if self.name else str(self.address)


@dataclass(frozen=True, slots=True)
class MailDomain:
    """The mail exchangers of a domain, as the DNS has them (RFC 5321, 5.1), at this port."""

    domain: str
    port: int = 25

    def __str__(self) -> str:
        return f"mx:{self.domain}" if self.port == 25 else f"mx:{self.domain}:{self.port}"


def parse_next_hop(text: object) -> Server | MailDomain:
    """`"host:port"`, `"smtp://host:port"`, `"lmtp://host:port"`, `"lmtp:/socket"`, `"mx:domain"`; raises ValueError."""
    text = text if isinstance(text, str) else ""
    match = re.fullmatch(r"(smtp://|lmtp://|lmtp:(?=/[^/])|mx:|(?!\w+:\D))(\S+)", text)
    try:
        match match and match.groups():
            case "lmtp:", str(path):
                return Server("lmtp", Path(path))
            case "mx:", str(domain):
                name, _, port = domain.partition(":")
                return MailDomain(parse_domain(name), _to_connect(f"{name}:{port or 25}").port)
            case str(scheme), str(address):
                return Server("lmtp" if scheme == "lmtp://" else "smtp", _to_connect(address))
    except ValueError:
        pass  # what is wrong with a part is no help for the whole
    raise ValueError(
        'write it as "host:port", "smtp://host:port", "lmtp://host:port", "lmtp:/path/to/socket" or "mx:example.org"'
    )


def _to_connect(text: str) -> TCPAddress:
    address = parse_address(text)
    if not address.port:
        raise ValueError("port 0 is none to connect to")
    return address


def parse_next_hops(value: object) -> tuple[Server | MailDomain, ...]:
    """One next hop, or a list of them; raises ValueError."""
    return tuple(map(parse_next_hop, value if isinstance(value, list | tuple) else [value]))


def parse_domain(value: str) -> str:
    """A mail domain in lower case; raises ValueError."""
    if not re.fullmatch(r"(?=.{1,253}\Z)[\w-]+(\.[\w-]+)*", value):
        raise ValueError(f'{value!r} is not a mail domain; write for instance "example.org"')
    return value.lower()


def parse_mailbox(value: str) -> str:
    """A mail address with its domain in lower case (RFC 5321, 2.4); raises ValueError."""
    local, at, domain = value.rpartition("@")
    if not at or not local or len(value) > 320 or not value.isprintable():
        raise ValueError(f'{value[:80]!r} is not a mail address; write for instance "ben@example.org"')
    return f"{local}@{parse_domain(domain)}"
