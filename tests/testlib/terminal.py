"""A program at a terminal, and somebody who reads what it asks and types the answers.
Standard: a pseudo terminal as pty(7) has it; what is typed is counted.
"""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

DEADLINE_S = 120.0


class Terminal:
    """One program that runs at a terminal; `answers` counts the lines that were typed on being asked."""

    def __init__(self, words: Sequence[str], *, directory: Path, environment: Mapping[str, str]) -> None:
        """Starts it."""
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            words, stdin=slave, stdout=slave, stderr=slave, cwd=directory, start_new_session=True,
            env={**os.environ, **environment},
        )  # fmt: skip
        os.close(slave)
        self.shown = ""
        self.answers = 0
        self._read = 0

    def asked(self, questions: Sequence[str]) -> str | None:
        """Waits for one of these questions behind what was read so far; None where the program ends instead."""
        pattern = re.compile("|".join(rf"^{re.escape(each)}[^\n]*:\s?\Z" for each in questions), re.MULTILINE)
        while not (found := pattern.search(self.shown, self._read)):
            if not self._take():
                return None
        self._read = found.end()
        return next(each for each in questions if found[0].startswith(each))

    def answer(self, line: str) -> None:
        """Types a line."""
        self.answers += 1
        self._type(line + "\n")

    def paste(self, text: str) -> None:
        """Types several lines at once, as one answer."""
        self.answers += 1
        self._type(text)

    def end(self) -> int:
        """Waits for the end; the exit status."""
        while self._take():
            pass
        os.close(self._master)
        return self._process.wait(DEADLINE_S)

    def _type(self, text: str) -> None:
        left = memoryview(text.encode())
        os.set_blocking(self._master, False)
        while left:
            readable, writable, _ = select.select([self._master], [self._master], [], DEADLINE_S)
            assert readable or writable, self.shown[-2000:]
            if readable:
                self._take()
            if writable:
                left = left[os.write(self._master, left[:1024]) :]
        os.set_blocking(self._master, True)

    def _take(self) -> bool:
        """Reads what is there; False at the end."""
        deadline = time.monotonic() + DEADLINE_S
        ready, _, _ = select.select([self._master], [], [], deadline - time.monotonic())
        assert ready, f"nothing more after\n{self.shown[-2000:]}"
        try:
            octets = os.read(self._master, 65_536)
        except OSError:  # how Linux says that the other end is closed
            return False
        self.shown += octets.decode("utf-8", "replace").replace("\r\n", "\n")
        return bool(octets)
