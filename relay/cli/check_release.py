"""What `check` says of the release that serves: it must be the one that is installed.
Standard: a process keeps running from files that are gone; only a restart has it run what was installed since.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from relay.cli.check_site import State
from relay.cli.keys import release_of_the_serving_relay
from relay.cli.units import how_to
from relay.config import Config
from relay.runtime import release


def release_states(config_file: Path, config: Config) -> Iterator[State]:
    """A line where a relay serves, and says what it runs."""
    running, here = release_of_the_serving_relay(config), release.installed()
    if running is None:
        return
    problem = ""
    if not running.now:
        problem = f"runs version {running.version} from {running.directory}, which is gone"
    elif running.now != running.stamp:
        problem = f"runs version {running.version} as it was in {running.directory} before that was installed anew"
    elif running.version != here.version:
        problem = f"runs version {running.version} from {running.directory}"
    if problem:
        problem += f"; installed is version {here.version} in {here.directory}: {how_to('restart', config_file)}"
    yield "release", f"{running.version} serves, from {running.directory}", (problem,) if problem else ()
