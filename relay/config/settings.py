"""The kinds of values that settings have, each with its check: sizes, paths, addresses, names.
Standard: pydantic validators that raise ValueError with what to write instead.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from relay.config.addresses import (
    MailDomain,
    Network,
    Server,
    TCPAddress,
    parse_address,
    parse_domain,
    parse_mailbox,
    parse_networks,
    parse_next_hops,
    parse_socket,
)

_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_size(text: object) -> int:
    """`"50 MiB"`, `"256KiB"` or a number of octets, as octets; raises ValueError."""
    if isinstance(text, int) and not isinstance(text, bool) and text > 0:
        return text
    match = re.fullmatch(r"(\d{1,12})\s*([A-Za-z]*)", text.strip()) if isinstance(text, str) else None
    if not match or match[2].upper() not in _UNITS or int(match[1]) == 0:
        raise ValueError('write a size such as "50 MiB", or a number of octets above 0')
    return int(match[1]) * _UNITS[match[2].upper()]


def _path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError("write a path in quotes")
    base = (info.context or {}).get("base", Path())
    try:
        return Path(base) / Path(value).expanduser()
    except RuntimeError:  # what the standard library raises
        raise ValueError(f"{Path(value).parts[0]} has no home directory here; write the whole path") from None


def _database(value: object, info: ValidationInfo) -> Path | str:
    if isinstance(value, str) and value.startswith("postgresql://"):
        return value
    return _path(value, info)


def _ca(value: object, info: ValidationInfo) -> Path | str:
    return "system" if value == "system" else _path(value, info)


def as_tuple(value: object) -> object:
    """TOML has lists, and settings are immutable."""
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
Printable = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]
SAEID = Annotated[str, Field(min_length=1, max_length=128)]
