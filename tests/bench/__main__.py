"""`python -m tests.bench`: how much mail this machine carries, sealed and opened, and what it costs beside other programs.
Progress is on standard error, the result on standard output; nothing is left behind.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import click
import uvloop

from relay.cli.logs import configure_logging
from relay.cli.output import plain_console
from relay.config import LogSettings
from relay.errors import ConfigError, RelayError
from tests.bench import plot
from tests.bench.figures import BenchFigures
from tests.bench.keys import measure_keys
from tests.bench.levels import measure_levels
from tests.bench.mail import DAY_ROUNDS, ROUNDS, Run, list_cases, unknown
from tests.bench.policy import FULL_FILES, QUICK_FILES, measure_policy
from tests.bench.report import show
from tests.bench.result import STDOUT, BenchmarkFailed, BenchResult, Progress, machine, write_json
from tests.bench.soak import soak
from tests.bench.usage import ProcessorTime

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option(
    "--quick", is_flag=True, help="In a minute: how many mails a day has room for, then each case once, with few mails."
)
@click.option("--only", multiple=True, metavar="NAME", help="Only this part, way or case (--list); may be repeated.")
@click.option("--list", "listed", is_flag=True, help="What can be measured, and what cannot be here, and why.")
@click.option("--json", "json_file", type=_FILE, metavar="FILE", help="Write all figures of all rounds; - is stdout.")
@click.option("--compare", type=_FILE, metavar="FILE", help="Beside an earlier run, which --json has written.")
@click.option("--plot", "picture", type=_FILE, metavar="FILE", help="Draw a PNG (needs matplotlib).")
@click.option(
    "--rounds",
    type=click.IntRange(1, 1000),
    default=ROUNDS,
    show_default=True,
    help="More are surer; --quick has none.",
)
@click.option("--keys", "kind", flag_value="keys", help="The KM client instead, over a slow development KME.")
@click.option("--levels", "kind", flag_value="levels", help="What each level costs instead, without any network.")
@click.option("--policy", "kind", flag_value="policy", help="100,000 policy files instead: load, reload, decide.")
@click.option(
    "--soak", "soak_s", type=click.FloatRange(1, 86400), help="Duration, in seconds, of mail over failing KMEs."
)
def bench(
    quick: bool, only: tuple[str, ...], listed: bool, json_file: Path | None, compare: Path | None,
    picture: Path | None, rounds: int, kind: str | None, soak_s: float | None,
) -> None:  # fmt: skip
    """Measure how much mail relays on this machine seal and open, beside programs that only pass it on.

    All of it runs on free ports of this machine, with development keys: two sites and a bare aiosmtpd-to-aiosmtplib
    pass-through. As root, a Postfix and a Dovecot of its own run as well, if they are installed. smtp-source sends and
    smtp-sink takes, which come with Postfix; without them Python does, and bounds what can be measured. Every way must
    first bring mail to a sink that looks whether it is sealed, or open, as it should be.

    Ways are measured in turn, round after round; figures are medians. On two cores all of it takes 20 minutes. With
    --quick alone it ends within one, and what there was no time for is left out. Ctrl-C ends it with what is known by
    then. Leave the machine alone meanwhile.

    The host of a virtual machine takes a processor whenever it likes; how much it took, the last line says. If that is
    more than some per cent, the figures say more of the host than of the relay.

    \b
      python -m tests.bench --quick                          does everything work here?
      python -m tests.bench --json now.json --plot now.png   all figures, and a picture
      python -m tests.bench --only opening --compare now.json
    """
    signal.signal(signal.SIGTERM, _stopped)
    if listed:
        click.echo(list_cases())
        return
    if kind is None and soak_s is None:
        _mail(only, quick, json_file, compare, picture, rounds)
        return
    with plain_console(stderr=True).status("") as status:
        result = _other(kind, soak_s, quick, lambda doing, share: status.update(f"{share:.0%} {doing}"))
    result.show(json_file)
    if result.faults:
        sys.exit(1)


def _mail(
    only: tuple[str, ...], quick: bool, json_file: Path | None, compare: Path | None, picture: Path | None,
    rounds: int,
) -> None:  # fmt: skip
    """The run of all cases or some. What is missing for its output is said before it begins, not afterwards."""
    if names := unknown(only):
        raise click.UsageError(f"there is nothing called {names[0]!r} to measure; see --list")
    earlier = BenchFigures.read(compare) if compare else None
    if picture is not None:
        plot.library()
    for file in (json_file, picture):
        if file is not None and file != STDOUT:
            _check_writable(file)
    began, where, interrupted, processors = time.monotonic(), machine(), False, ProcessorTime.now()
    with plain_console(stderr=True).status("") as status:
        run = Run(only, quick, lambda doing, share: status.update(f"{share:.0%} {doing}"), rounds)
        try:
            uvloop.run(_measured(run))
        except (KeyboardInterrupt, asyncio.CancelledError):
            interrupted = True
        except BenchmarkFailed as error:
            run.figures.faults.append(str(error))
    seconds = time.monotonic() - began
    medians = f"medians of {run.rounds} rounds" if run.rounds else "one short round, which says little of speed"
    if run.keeps_to_a_minute:
        medians += f" but for the mails of a day, which had {DAY_ROUNDS}"
    taken = ProcessorTime.now().taken_since(processors)
    about = f"{medians}, {seconds:.0f} s in all; {where}; the host took {taken:.0%} of their time"
    if json_file != STDOUT:
        show(run.figures, about, earlier)
    if json_file is not None:
        more = {"seconds": seconds, "rounds": run.rounds, "interrupted": interrupted, "taken": taken}
        write_json(json_file, run.figures.data(where, **more))
    if picture is not None:
        plot.plot(run.figures, about, picture)
    for fault in run.figures.faults:
        click.echo(f"FAILED: {fault}", err=True)
    if interrupted:
        click.echo("interrupted: this is what was known by then", err=True)
        sys.exit(130)
    if run.figures.faults:
        sys.exit(1)


async def _measured(run: Run) -> None:
    """SIGTERM is like Ctrl-C: what was started is ended, and what is known is shown."""
    measuring = asyncio.ensure_future(run.measure())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, measuring.cancel)
    await measuring


def _check_writable(file: Path) -> None:
    """Raises ConfigError where a run's result could not be written there afterwards."""
    try:
        file.open("ab").close()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error.strerror})") from error


def _other(kind: str | None, soak_s: float | None, quick: bool, progress: Progress) -> BenchResult:
    if soak_s is not None or kind == "keys":
        configure_logging(LogSettings(level="error"))
        return asyncio.run(measure_keys(progress) if soak_s is None else soak(soak_s, progress=progress))
    if kind == "levels":
        return measure_levels(quick=quick, progress=progress)
    return measure_policy(files=QUICK_FILES if quick else FULL_FILES, progress=progress)


def _stopped(number: int, frame: FrameType | None) -> None:
    """SIGTERM unwinds like Ctrl-C, so that the processes that were started are ended too."""
    sys.exit(128 + number)


if __name__ == "__main__":
    try:
        bench(prog_name="python -m tests.bench")
    except RelayError as error:
        sys.exit(str(error))
