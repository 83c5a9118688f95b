"""POSIX ACLs of files, without the tools for them: one user more may do something.
Standard: acl(5); the attribute system.posix_acl_access as Linux has it, version 2.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

_NOBODY = 0xFFFFFFFF
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20


def let(path: Path, number: int, rights: int, *, group: bool = False) -> None:
    """As `setfacl -m u:NUMBER:RIGHTS PATH` (`g:` for a group): its mode then shows the mask as rights of the group."""
    mode = path.stat().st_mode
    of_group = mode >> 3 & 7
    entries = [
        (_USER_OBJ, mode >> 6 & 7, _NOBODY),
        *([] if group else [(_USER, rights, number)]),
        (_GROUP_OBJ, of_group, _NOBODY),
        *([(_GROUP, rights, number)] if group else []),
        (_MASK, of_group | rights, _NOBODY),
        (_OTHER, mode & 7, _NOBODY),
    ]
    octets = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", octets)
