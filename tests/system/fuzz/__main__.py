"""Runs one fuzz target for a time: python -m tests.system.fuzz TARGET [--seconds N] [--corpus DIRECTORY] [--without-atheris].
Standard: with atheris coverage leads, without it edits alone; an input that breaks the target is written down and ends it.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import importlib.util
import logging
import random
import resource
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from tests.system.fuzz.edits import MAX_OCTETS, edited, random_edits
from tests.system.fuzz.targets import FOUND, TARGETS, found, target_of

if TYPE_CHECKING:
    from tests.system.fuzz.target import Target

HANGS_S = 60
MEMORY_OCTETS = 4 * 2**30
INSTRUMENTED = 10.0
"""Slowdown allowed for code instrumented for atheris."""


def main() -> int:
    """Exit status 0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.fuzz", description=__doc__)
    parser.add_argument("target", help="one of those that a wrong name lists")
    parser.add_argument("--seconds", type=int, default=60, help="how long (60)")
    parser.add_argument("--corpus", type=Path, help="where inputs that reach something new are kept (atheris only)")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices; 0 takes another one each time")
    parser.add_argument("--without-atheris", action="store_true", help="edits alone, even where atheris is installed")
    arguments = parser.parse_args()
    led = importlib.util.find_spec("atheris") is not None and not arguments.without_atheris
    target = _target(arguments.target, led)
    if target is None:
        return 2
    logging.disable(logging.CRITICAL)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    seed = arguments.seed or random.SystemRandom().randrange(1, 2**31)
    if led:
        return _with_atheris(target, arguments.seconds, seed, arguments.corpus)
    return _edits_alone(target, arguments.seconds, seed)


def _target(name: str, led: bool) -> Target | None:
    """The target of this name, its readers imported so that atheris sees where they go if it leads."""
    if name not in TARGETS:
        print(f"no target {name!r}; there are: {', '.join(sorted(TARGETS))}", file=sys.stderr)  # noqa: T201
        return None
    with ExitStack() as stack:
        if led:
            import atheris

            stack.enter_context(atheris.instrument_imports(include=["relay", "aiosmtpd", "tomllib"]))
        return target_of(name)


def _seeds(target: Target) -> list[bytes]:
    return [*target.seeds(), *(path.read_bytes() for path in found() if path.parent.name == target.name)]


def _edits_alone(target: Target, seconds: int, seed: int) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_OCTETS, MEMORY_OCTETS))
    choose = random.Random(seed)
    seeds = _seeds(target)
    end = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < end:
        data = edited(choose.choice(seeds), random_edits(choose, target.words, seeds))
        faulthandler.dump_traceback_later(HANGS_S, exit=True)
        try:
            target.timed(data)
        except BaseException:
            print(f"{target.name}: after {tried} inputs, seed {seed}, found {_written(target, data)}", file=sys.stderr)  # noqa: T201
            raise
        tried += 1
    faulthandler.cancel_dump_traceback_later()
    print(f"{target.name}: {tried} inputs in {seconds} s, seed {seed}, nothing found")  # noqa: T201
    return 0


def _with_atheris(target: Target, seconds: int, seed: int, corpus: Path | None) -> int:
    import atheris

    choose = random.Random(seed)
    seeds = _seeds(target)

    def run(data: bytes) -> None:
        try:
            target.timed(data, INSTRUMENTED)
        except BaseException:
            print(f"{target.name}: found {_written(target, data)}", file=sys.stderr)  # noqa: T201
            raise

    def mutate(data: bytes, most: int, _: int) -> bytes:
        if choose.random() < 0.5:
            changed: bytes = atheris.Mutate(data, most)
            return changed
        return edited(data, random_edits(choose, target.words, seeds))[:most]

    with tempfile.TemporaryDirectory() as name:
        directory = corpus or Path(name)
        directory.mkdir(parents=True, exist_ok=True)
        for each in seeds:
            (directory / hashlib.sha256(each).hexdigest()[:16]).write_bytes(each)
        options = [f"-max_total_time={seconds}", f"-max_len={MAX_OCTETS}", f"-seed={seed}", f"-timeout={HANGS_S}"]
        options += ["-rss_limit_mb=4096", "-print_final_stats=1", f"-artifact_prefix={name}/"]
        atheris.Setup([sys.argv[0], *options, str(directory)], run, custom_mutator=mutate)
        atheris.Fuzz()
    return 0


def _written(target: Target, data: bytes) -> Path:
    """The file in found/ that now holds this input; give it a name that says what was wrong."""
    path = FOUND / target.name / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


if __name__ == "__main__":
    sys.exit(main())
