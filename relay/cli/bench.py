"""`qumail-relay bench`: how much mail this machine carries, sealed, and what costs what.
Progress is on standard error, the result on standard output; nothing is left behind.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from types import FrameType

import click
import uvloop
from rich.console import Console

from relay.bench.keys import measure_keys
from relay.bench.levels import measure_levels
from relay.bench.mail import measure_mail
from relay.bench.milter import measure_milter
from relay.bench.policy import FULL_FILES, QUICK_FILES, measure_policy
from relay.bench.result import BenchResult, Progress
from relay.bench.soak import soak
from relay.cli.logs import configure_logging
from relay.config import LogSettings


@click.command()
@click.option("--quick", is_flag=True, help="One short round: shows that all works, says little about speed.")
@click.option("--keys", "what", flag_value="keys", help="The KM client instead, over a slow development KME.")
@click.option("--levels", "what", flag_value="levels", help="What each level costs instead, without any network.")
@click.option("--policy", "what", flag_value="policy", help="100,000 policy files instead: load, reload, decide.")
@click.option("--milter", "what", flag_value="milter", help="The milter in a Postfix instead (root, Postfix).")
@click.option("--soak", "soak_s", type=click.FloatRange(1, 86400), help="So many seconds of mail over failing KMEs.")
@click.option("--json", "as_json", is_flag=True, help="For programs: all figures of all rounds.")
def bench(quick: bool, what: str | None, soak_s: float | None, as_json: bool) -> None:
    """Measure the outgoing relay at level aes, beside a bare aiosmtpd-to-aiosmtplib pass-through.

    Everything runs on this machine, on free ports, with development keys: sender, relay, pass-through, and a
    sink that checks that each mail arrived and was sealed. It takes up to a minute, --quick up to 10 s.
    """
    signal.signal(signal.SIGTERM, _stopped)
    with Console(stderr=True).status("") as status:
        result = _measured(what, soak_s, quick, lambda doing, share: status.update(f"{share:.0%} {doing}"))
    result.show(as_json=as_json)
    if result.faults:
        sys.exit(1)


def _measured(what: str | None, soak_s: float | None, quick: bool, progress: Progress) -> BenchResult:
    if soak_s is not None or what == "keys":
        configure_logging(LogSettings(level="error"))
        return asyncio.run(measure_keys(progress) if soak_s is None else soak(soak_s, progress=progress))
    match what:
        case "levels":
            return measure_levels(quick=quick, progress=progress)
        case "policy":
            return measure_policy(files=QUICK_FILES if quick else FULL_FILES, progress=progress)
        case "milter":
            return uvloop.run(measure_milter(quick=quick, progress=progress))
    return uvloop.run(measure_mail(quick=quick, progress=progress))


def _stopped(number: int, frame: FrameType | None) -> None:
    """SIGTERM unwinds like Ctrl-C, so that the processes that were started are ended too."""
    sys.exit(128 + number)
