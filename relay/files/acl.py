"""Says whom else a POSIX ACL lets use a file: the mode shows what it gives them as rights of the file's group.
Standard: acl(5); the attribute system.posix_acl_access as Linux has it, version 2.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import struct
from collections.abc import Callable, Collection
from pathlib import Path

_USER, _GROUP, _MASK = 0x02, 0x08, 0x10
_HEADER_OCTETS, _ENTRY = 4, struct.Struct("<HHI")
"""A version, then a tag, rights, and the number of a user or group, for each entry."""


def named_in_acl(file: int | str | Path, rights: int, trusted: Collection[int]) -> str:
    """Whom else than the `trusted` users a POSIX ACL gives any of these rights (os.R_OK, ...): "user eve", or "".

    The mode shows its mask as the rights of the group (acl(5)), which may be ours. Raises OSError.
    """
    try:
        entries = list(_ENTRY.iter_unpack(os.getxattr(file, "system.posix_acl_access")[_HEADER_OCTETS:]))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return ""
        raise
    mask = next((given for tag, given, _ in entries if tag == _MASK), ~0)
    for tag, given, number in entries:
        if tag in (_USER, _GROUP) and given & mask & rights:
            if tag == _USER and number not in trusted:
                return f"user {_name(pwd.getpwuid, number)}"
            if tag == _GROUP and number != 0:
                return f"group {_name(grp.getgrgid, number)}"
    return ""


def _name(look_up: Callable[[int], pwd.struct_passwd | grp.struct_group], number: int) -> str:
    try:
        return str(look_up(number)[0])
    except KeyError:
        return str(number)
