"""Commands that are printed for a person to paste into a shell, perhaps as root: all are made here, each word quoted.
Standard: POSIX shell quoting (XCU 2.2); $'...' (POSIX.1-2024) for what a terminal would not show as it is.

Other users choose names of files, peers and addresses. Pasted without quotes, such a name would be a command.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path


def command(*words: str | Path) -> str:
    """The command to paste; a word stays one word, whatever is in it, and a path is no option."""
    return " ".join(map(_quoted, words))


def as_user(user: str, *words: str | Path) -> str:
    """The command, which root has another user carry out; that user gets no hold of root's terminal (--pty)."""
    return command("runuser", "--pty", "-u", user, "--", *words)


def one_after_the_other(*commands: str) -> str:
    """Several, of which each is carried out if those before it went well."""
    return " && ".join(commands)


def named(path: Path) -> str:
    """The name of a file that was found, for a text: also what is pasted of a text is no command."""
    return _quoted(path)


def _quoted(word: str | Path) -> str:
    text = os.fspath(word)
    if isinstance(word, Path) and text.startswith("-"):
        text = f"./{text}"
    if text.isprintable():
        return shlex.quote(text)
    # A quote mark is written as a number: a shell that does not know $'...' reads one word as well, and no such file.
    shown = (chr(each) if 32 <= each < 127 and each not in b"'\\" else f"\\{each:03o}" for each in os.fsencode(text))
    return f"$'{''.join(shown)}'"
