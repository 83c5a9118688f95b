"""`python -m relay.kme`: the development key servers without the rest of the relay. NOT QUANTUM.
For the library of the key clients (deploy/keys), which has no click; `qumail-relay kme` has more options.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from relay.errors import ConfigError
from relay.keys.development import DEFAULT_PORTS
from relay.kme.servers import DevelopmentKMEs, announced


def main() -> None:
    """Runs KM1 and KM2 until SIGINT or SIGTERM; exit status 1 if they cannot start."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}", description="Key servers KM1 and KM2 for trying. THEIR KEYS ARE NOT QUANTUM."
    )
    parser.add_argument("--port", type=int, action="append", help="twice: KM1's and KM2's; 0 is any free one")
    parser.add_argument("--state", type=Path, help="where certificates lie [default: the user's state directory]")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if len(ports := options.port or DEFAULT_PORTS) != 2:
        parser.error("give --port twice: KM1's and KM2's")
    try:
        asyncio.run(_run(DevelopmentKMEs(state_dir=options.state, ports=(ports[0], ports[1]))))
    except ConfigError as error:
        sys.exit(str(error))


async def _run(servers: DevelopmentKMEs) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with servers:
        sys.stdout.write(announced(servers))
        sys.stdout.flush()
        await stop.wait()


if __name__ == "__main__":
    main()
