"""Finds the users and groups that a POSIX ACL grants access; the mode shows such grants as rights of the group.
Standard: acl(5); the attribute system.posix_acl_access in Linux's format, version 2.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Literal, NamedTuple

from relay.files.accounts import group_name, user_name

_USER, _GROUP, _MASK = 0x02, 0x08, 0x10
_HEADER_OCTETS, _ENTRY = 4, struct.Struct("<HHI")
"""A version, then tag, rights, and user or group ID for each entry."""


class NamedInACL(NamedTuple):
    """A user or group that an ACL names; as text "user eve"."""

    kind: Literal["user", "group"]
    name: str

    @property
    def entry(self) -> str:
        """The entry for setfacl(1), as "u:eve"."""
        return f"{self.kind[0]}:{self.name}"

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def named_in_acl(file: int | str | Path, rights: int, trusted: Collection[int]) -> NamedInACL | None:
    """A user not in `trusted`, or a group, with any of these rights (os.R_OK, ...) by a POSIX ACL, or None.

    The mode shows the mask as the group's rights (acl(5)), and the group may be ours. Raises OSError.
    """
    try:
        entries = list(_ENTRY.iter_unpack(os.getxattr(file, "system.posix_acl_access")[_HEADER_OCTETS:]))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise
    mask = next((given for tag, given, _ in entries if tag == _MASK), ~0)
    for tag, given, number in entries:
        if tag in (_USER, _GROUP) and given & mask & rights:
            if tag == _USER and number not in trusted:
                return NamedInACL("user", user_name(number))
            if tag == _GROUP and number != 0:
                return NamedInACL("group", group_name(number))
    return None
