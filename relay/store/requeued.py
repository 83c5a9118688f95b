"""Knows a mail again that Postfix has read in once more (`postsuper -r`): each time puts one trace field on top of it.
Standard: postsuper(1) and pickup(8): such a mail is handed in by Postfix's own user, whom no program runs as.

Whatever else is on top makes another mail of it. A program that hands in the same octets twice means two mails, and one
taken for the other would be lost. So nothing is left out but these fields, and only above another Received field.
"""

from __future__ import annotations

import pwd
import re
from functools import cache

USER = "postfix"
"""The mail_owner of every Postfix that was not set up otherwise."""
_FIELD = re.compile(
    rb"Received: by [^ \r\n]{1,255} \([^\r\n]{1,255}, from userid ([0-9]{1,10})\)\r\n"
    rb"\tid [0-9A-Za-z]{1,64}; [^\r\n]{1,99}\r\n(?=[Rr]eceived:)"
)


def begin_before(message: bytes, owner: int | None) -> int:
    """Where the message begins that was in the queue before, in octets: 0 for one that was not queued again.

    `owner` is the number of Postfix's own user on the host of the relay, None where it has none.
    """
    begin = 0
    while (field := _FIELD.match(message, begin)) and int(field[1]) == owner:
        begin = field.end()
    return begin


@cache
def postfix_owner() -> int | None:
    """The number of Postfix's own user here, or None; asked once."""
    try:
        return pwd.getpwnam(USER).pw_uid
    except KeyError:
        return None
