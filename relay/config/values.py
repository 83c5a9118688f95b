"""The types of setting values, with validation: addresses, next hops, domains, sizes, paths, names.
Each form has one spelling; a ValueError has an example of a valid value.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from relay.formats.characters import is_printable
from relay.formats.mailbox import fold_domain, one_quoting


class TCPAddress(NamedTuple):
    """A TCP address: host name or IP address, and port (0 to listen: any free one)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: object) -> TCPAddress:
    """`"127.0.0.1:15025"` or `"[::1]:15025"` as a TCPAddress; raises ValueError."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]/\s]+)):(\d{1,5})", str(text))
    if not isinstance(text, str) or not match or int(match[3]) > 65535:
        raise ValueError('write it as "host:port", for instance "127.0.0.1:15025" or "[::1]:15025"')
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
    """One next hop: its protocol (RFC 5321, RFC 2033), and its TCP address or Unix socket.

    `name` is the host name that was resolved to the address, "" if unresolved.
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
    """The mail exchangers of a domain from the DNS (RFC 5321, 5.1), at this port."""

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
        pass  # an error about a part would not help
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
    """A mail domain in lower case and A-labels; raises ValueError."""
    try:
        return fold_domain(value)
    except ValueError:
        raise ValueError(f'{value!r} is not a mail domain; write for instance "example.org"') from None


def parse_mailbox(value: str) -> str:
    """A mail address in canonical spelling; raises ValueError."""
    local, at, domain = value.rpartition("@")
    if not at or not local or len(value) > 320 or not is_printable(value):
        raise ValueError(f'{value[:80]!r} is not a mail address; write for instance "ben@example.org"')
    return f"{one_quoting(local)}@{parse_domain(domain)}"


MAX_SIZE = 2**62
"""Maximum value of a size setting, in bytes."""
_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS |= {letter: _UNITS[f"{letter}IB"] for letter in "KMG"}


def parse_size(text: object) -> int:
    """`"50 MiB"`, `"256KiB"`, `"75K"` (KiB) or a number of bytes, as bytes; raises ValueError."""
    if isinstance(text, int) and not isinstance(text, bool) and 0 < text <= MAX_SIZE:
        return text
    match = re.fullmatch(r"(\d{1,12})\s*([A-Za-z]*)", text.strip()) if isinstance(text, str) else None
    size = int(match[1]) * _UNITS.get(match[2].upper(), 0) if match else 0
    if not 0 < size <= MAX_SIZE:
        raise ValueError(f'write a size such as "50 MiB", or a number of bytes from 1 to {MAX_SIZE}')
    return size


def _path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError("write a path in quotes")
    base = (info.context or {}).get("base", Path())
    try:
        return Path(base) / Path(value).expanduser()
    except RuntimeError:  # raised by pathlib
        raise ValueError(f"{Path(value).parts[0]} has no home directory here; write the whole path") from None


def _database(value: object, info: ValidationInfo) -> Path | str:
    if isinstance(value, str) and value.startswith("postgresql://"):
        return value
    return _path(value, info)


def _ca(value: object, info: ValidationInfo) -> Path | str:
    return "system" if value == "system" else _path(value, info)


def as_tuple(value: object) -> object:
    """A TOML list as a tuple, since settings are immutable."""
    return tuple(value) if isinstance(value, list) else value


SizeSetting = Annotated[int, BeforeValidator(parse_size)]
AddressSetting = Annotated[TCPAddress, BeforeValidator(parse_address)]
SocketSetting = Annotated[TCPAddress | Path, BeforeValidator(parse_socket)]
NextHops = Annotated[tuple[Server | MailDomain, ...], BeforeValidator(parse_next_hops), Field(min_length=1)]
PathSetting = Annotated[Path, BeforeValidator(_path)]
Networks = Annotated[tuple[Network, ...], BeforeValidator(parse_networks)]
CASetting = Annotated[Path | Literal["system"], BeforeValidator(_ca)]
DatabaseSetting = Annotated[Path | str, BeforeValidator(_database)]
Domains = Annotated[
    tuple[Annotated[str, AfterValidator(parse_domain)], ...], BeforeValidator(as_tuple), Field(min_length=1)
]
MailboxSetting = Annotated[str, AfterValidator(parse_mailbox)]
Mailboxes = Annotated[tuple[MailboxSetting, ...], BeforeValidator(as_tuple), Field(min_length=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple), Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, le=86400, strict=False)]
Printable = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+\Z")]
SAEID = Annotated[str, Field(min_length=1, max_length=128)]
