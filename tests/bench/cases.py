"""What is measured, and what is compared with what: two tables, read by everything else here.
A case is a way that mail takes, at one size; its name stands in the output, in --only and in the JSON file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from relay.levels import AES, SEALING, SMIME

KB, MB = 1_000, 1_000_000
ALL = (1 * KB, 4 * KB, 100 * KB, 1 * MB, 10 * MB, 25 * MB)
SOME = (4 * KB, 1 * MB, 10 * MB)
QUICK = (4 * KB, 1 * MB)
CONNECTIONS = {1 * KB: 16, 4 * KB: 16, 100 * KB: 8, 1 * MB: 4, 10 * MB: 3, 25 * MB: 2}
"""Number of concurrent mails, by their size."""

Kind = Literal["mails/s", "CPU ms", "peak MB", "p50 ms", "p99 ms", "s", "MB", "x size"]
"""What a figure is. Mails a second; processor time a mail; percentiles of the time that a mail takes; seconds. Memory
is the largest of all processes of the server that the way is about, also by a mail's size.
"""


@dataclass(frozen=True, slots=True)
class BenchWay:
    """Mail in at a `listener` (relay/bench/servers.py), at these sizes, and as it must arrive at the sink.

    Policy requires `level` for its recipient. `sealed` mail comes in sealed by another relay. Processor
    time and memory are reported for `server`. `needs` are programs that must be installed.
    """

    part: str
    name: str
    listener: str
    arrives: Literal["sealed", "same", "changed"]
    sizes: tuple[int, ...] = SOME
    level: str = AES.name
    lmtp: bool = False
    sealed: bool = False
    server: str = ""
    needs: tuple[str, ...] = ()


_POSTFIX = ("Postfix",)
_WATCHED = (4 * KB, 1 * MB)
_BEHIND = "alice-behind-postfix"
LIMIT, PASS, POSTFIX = "source to sink", "pass-through", "Postfix"

WAYS = (
    BenchWay("sealing", LIMIT, "sink", "same", ALL, needs=("smtp-source",)),
    BenchWay("sealing", PASS, "pass-through", "same", ALL, server="pass-through"),
    BenchWay("sealing", POSTFIX, "postfix:alone", "same", ALL, needs=_POSTFIX),
    *(BenchWay("sealing", level, "alice", "sealed", ALL, level, server="alice") for level in (*SEALING, SMIME)),
    BenchWay("workers", "aes, 2 workers", "alice-2-workers", "sealed", ALL, server="alice-2-workers"),
    BenchWay("watched", "aes, not watched", "alice-not-watched", "sealed", _WATCHED, server="alice-not-watched"),
    BenchWay("watched", "aes, watched", "alice-watched", "sealed", _WATCHED, server="alice-watched"),
    BenchWay("lmtp", "pass-through, LMTP", "pass-through-lmtp", "same", lmtp=True, server="pass-through-lmtp"),
    BenchWay("lmtp", "aes, LMTP", "alice:lmtp", "sealed", lmtp=True, server="alice"),
    *(
        way
        for level in SEALING
        for way in (
            BenchWay("opening", f"pass-through, sealed {level}", "pass-through", "sealed", SOME, level, sealed=True),
            BenchWay("opening", f"opening {level}", "bob", "same", SOME, level, sealed=True, server="bob"),
        )
    ),
    BenchWay("workers", "opening aes, 2 workers", "bob-2-workers", "same", sealed=True, server="bob-2-workers"),
    BenchWay("both", "two pass-throughs", "two-pass-throughs", "same", server="two-pass-throughs"),
    BenchWay("both", "sealed and opened", "alice-then-bob", "same", server="alice-then-bob"),
    BenchWay("postfix", "Postfix, null filter", "postfix:null", "same", needs=_POSTFIX),
    BenchWay("postfix", "Postfix, LMTP filter", "postfix:lmtp", "sealed", server=_BEHIND, needs=_POSTFIX),
    BenchWay("postfix", "Postfix, bare milter", "postfix:bare", "changed", server="bare-milter", needs=_POSTFIX),
    BenchWay("postfix", "Postfix, milter", "postfix:milter", "sealed", server=_BEHIND, needs=_POSTFIX),
)  # fmt: skip

OTHERS = {
    "latency": "what sealing and opening add to a mail at 10 mails/s, 4 KB",
    "memory": "what a relay holds: idle, with 25 MB messages in flight, a minute later",
    "imap": "1,000 messages of 20 KB opened in a mailbox, beside copying them by IMAP",
    "commands": "how long short commands take",
}
"""Measurements other than rounds of mail (relay/bench/others.py)."""

PARTS = {
    "sealing": "each level by SMTP, beside the limit, a bare pass-through and Postfix",
    "workers": "a relay with 2 workers",
    "watched": "a relay with [status] and an audit record of every mail, beside one without",
    "lmtp": "level aes by LMTP",
    "opening": "mail of each level opened, beside the same mail passed through",
    "both": "sealed by one relay and opened by the next, beside two pass-throughs in a row",
    "postfix": "filters and milters in a Postfix, beside those that do nothing or only replace bodies",
    **OTHERS,
}


def case_name(way: str, size: int) -> str:
    """The name of a way at a size of bytes: `aes 4 KB`."""
    return f"{way} {size // MB} MB" if size >= MB else f"{way} {size // KB} KB"


A_DAY = (case_name(AES.name, 4 * KB), case_name(f"opening {AES.name}", 4 * KB))
"""Usual mail, sealed and opened: what a day has room for."""


@dataclass(frozen=True, slots=True)
class BenchComparison:
    """One figure by another of the same kind, less another where `added`, or alone where there is no other.

    `aim` is what it has to reach, at most or at least; `before` what it was when that was set, in words.
    """

    this: str
    beside: str
    aim: float
    before: str
    kind: Kind = "mails/s"
    at_most: bool = False
    added: bool = False


COMPARISONS = (
    BenchComparison("aes 4 KB", "pass-through 4 KB", 1.5, "0.90"),
    BenchComparison("aes, 2 workers 4 KB", "Postfix 4 KB", 1.5, "0.97 with 1"),
    BenchComparison("aes, watched 4 KB", "aes, not watched 4 KB", 0.97, "none"),
    BenchComparison("aes, watched 1 MB", "aes, not watched 1 MB", 0.97, "none"),
    BenchComparison("otp 4 KB", "aes 4 KB", 0.9, "0.83"),
    BenchComparison("pqc 4 KB", "aes 4 KB", 0.6, "0.44"),
    BenchComparison("rsa 4 KB", "aes 4 KB", 0.45, "0.37"),
    BenchComparison("smime 4 KB", "rsa 4 KB", 0.83, "none"),
    BenchComparison("smime 1 MB", "rsa 1 MB", 0.83, "none"),
    BenchComparison("sealed and opened 4 KB", "two pass-throughs 4 KB", 0.9, "0.43"),
    *(
        BenchComparison(f"opening aes {size}", f"aes {size}", 1.2, "2 to 3.5", "CPU ms", at_most=True)
        for size in ("4 KB", "1 MB", "10 MB")
    ),
    BenchComparison("aes 1 MB", "pass-through 1 MB", 5, "3.5"),
    BenchComparison("aes 10 MB", "pass-through 10 MB", 5, "2.9"),
    BenchComparison("aes 1 MB", f"{LIMIT} 1 MB", 0.6, "0.41"),
    BenchComparison("aes 10 MB", f"{LIMIT} 10 MB", 0.6, "0.36"),
    BenchComparison("latency, opening", "latency, sink", 4, "15", "p50 ms", at_most=True, added=True),
    BenchComparison("latency, opening", "latency, sink", 10, "22", "p99 ms", at_most=True, added=True),
    BenchComparison("Postfix, LMTP filter 4 KB", "Postfix, null filter 4 KB", 1.2, "0.96"),
    BenchComparison("Postfix, LMTP filter 1 MB", "Postfix, null filter 1 MB", 3, "2.3"),
    BenchComparison("Postfix, milter 4 KB", "Postfix 4 KB", 0.6, "0.58"),
    BenchComparison("Postfix, milter 10 MB", "Postfix 10 MB", 0.45, "0.34"),
    BenchComparison("IMAP, opened", "IMAP, copied", 1.4, "1.9", "s", at_most=True),
    BenchComparison("memory, one 25 MB mail above idle", "", 4, "8.2", "x size", at_most=True),
    BenchComparison("memory, kept above idle", "", 30, "290", "MB", at_most=True),
    BenchComparison("memory, idle, first process", "", 80, "121", "MB", at_most=True),
    BenchComparison("command, --help", "", 0.4, "1.5", "s", at_most=True),
)
"""What a site is to notice nothing of, in figures; more mails a second, and less of everything else."""
