"""Quoted commands for a person to paste into a shell, perhaps as root.
Standard: POSIX shell quoting (XCU 2.2); $'...' (POSIX.1-2024) for text that a terminal would not show as it is.

Other users choose names of files, peers and addresses. Pasted without quotes, such a name could be a command.
"""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path


def command(*words: str | Path) -> str:
    """The command to paste; each word stays one word, and no path becomes an option."""
    return " ".join(map(_quoted, words))


def as_user(user: str, *words: str | Path) -> str:
    """A command by which root runs this one as another user, who gets no access to root's terminal (--pty)."""
    return command("runuser", "--pty", "-u", user, "--", *words)


def one_after_the_other(*commands: str) -> str:
    """Several commands, each run only if the previous ones succeeded."""
    return " && ".join(commands)


def with_acl_tools(typed: str) -> str:
    """A command that uses setfacl or getfacl; a bare Debian lacks their package, which is installed first."""
    return typed if shutil.which("setfacl") else one_after_the_other(command("apt", "install", "acl"), typed)


def named(path: Path) -> str:
    """A file name for a message, quoted in case somebody pastes it."""
    return _quoted(path)


def _quoted(word: str | Path) -> str:
    text = os.fspath(word)
    if isinstance(word, Path) and text.startswith("-"):
        text = f"./{text}"
    if text.isprintable():
        return shlex.quote(text)
    # A quote mark is written as a number: a shell without $'...' then reads one word too, of no existing file.
    shown = (chr(each) if 32 <= each < 127 and each not in b"'\\" else f"\\{each:03o}" for each in os.fsencode(text))
    return f"$'{''.join(shown)}'"
