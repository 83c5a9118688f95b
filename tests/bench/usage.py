"""Processor time and memory of a process and all that it has started, and processor time that nobody here had.
Standard: proc(5) of Linux, as the kernel counts them; elsewhere nothing is reported.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_STEAL = 8
"""The place of `steal` in a line of proc_stat(5); what follows it is reported twice there."""


class ProcessorTime(NamedTuple):
    """Of all processors since the machine began, in ticks: all of it, and what the host of a virtual machine took."""

    all: int
    taken: int

    @classmethod
    def now(cls) -> ProcessorTime:
        """Nothing at all where the system does not say."""
        try:
            fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1 : _STEAL + 1]
        except OSError:
            return cls(0, 0)
        return cls(sum(map(int, fields)), int(fields[-1]))

    def taken_since(self, begin: ProcessorTime) -> float:
        """The share (0 to 1) that the host took."""
        return (self.taken - begin.taken) / (self.all - begin.all) if self.all > begin.all else 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """A server's, by the number of its first process; 0 is none."""

    pid: int

    def tree(self) -> list[int]:
        """The process and its descendants that live now; none where the system does not say."""
        pids = [self.pid] if Path(f"/proc/{self.pid}/stat").exists() else []
        for pid in pids:
            with suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    pids += map(int, (task / "children").read_text().split())
        return pids

    def cpu_seconds(self) -> float:
        """Spent so far, in user space and in the kernel, children included that have ended."""
        ticks = 0
        for pid in self.tree():
            with suppress(OSError):
                # Behind the name, which may have spaces and brackets: fields 14 to 17 of proc_pid_stat(5).
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, fields[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def forget_peak(self) -> None:
        """From now on the peak is that of what comes."""
        for pid in self.tree():
            with suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak(self) -> float:
        """MB that each process held at most, added up; what they share counts for each of them."""
        return self._sum("VmHWM")

    def resident(self, *, first_alone: bool = False) -> float:
        """MB that they hold now, counted as in `peak`; or those of the first process."""
        return self._sum("VmRSS", [self.pid] if first_alone else None)

    def _sum(self, name: str, pids: Iterable[int] | None = None) -> float:
        kib = 0
        for pid in self.tree() if pids is None else pids:
            with suppress(OSError):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                kib += sum(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
        return kib * 1024 / 1e6
