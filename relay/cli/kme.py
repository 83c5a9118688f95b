"""`qumail-relay kme`: runs the two development key servers and the simulated link between them.
These keys are not quantum; relay/kme/faults.py lists the faults that the servers can simulate.
"""

from __future__ import annotations

from pathlib import Path

import click
import uvloop

from relay.cli.logs import configure_logging
from relay.kme import DevelopmentKMEs, LinkSettings
from relay.kme.faults import KINDS
from relay.kme.servers import announced
from relay.runtime.stopping import stop_on_signals

_DEFAULT = LinkSettings()


@click.command()
@click.option(
    "--port",
    "ports",
    type=click.IntRange(0, 65535),
    multiple=True,
    default=(13000, 14000),
    show_default=True,
    help="Give it twice: KM1's (Alice's) and KM2's (Bob's); 0 is any free port.",
)
@click.option("--host", default="localhost", show_default=True, help="A loopback address; no other is taken.")
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where certificates lie: ca.pem, sae-1.pem, sae-1.key ... [default: the user's state directory]",
)
@click.option("--key-rate", type=float, default=_DEFAULT.key_rate, show_default=True, help="bits/s of the link.")
@click.option(
    "--stored-keys", type=int, default=_DEFAULT.stored_key_limit, show_default=True, help="Keys kept at most."
)
@click.option("--lag", type=float, default=_DEFAULT.lag, show_default=True, help="Seconds until the other side has it.")
@click.option("--lifetime", type=float, default=_DEFAULT.lifetime, show_default=True, help="Seconds a key lives.")
@click.option("--drop-undelivered", is_flag=True, help="Misbehave: drop keys not fetched yet when more are asked for.")
@click.option(
    "--misbehave",
    "faults",
    type=(click.Choice(["status", "enc_keys", "dec_keys"]), click.Choice(KINDS)),
    multiple=True,
    metavar="CALL KIND",
    help=f"Do so at every such call (status, enc_keys, dec_keys), at both KMEs. KIND: {', '.join(KINDS)}.",
)
@click.option("--latency", type=click.FloatRange(min=0), default=0.0, help="Seconds that every answer takes.")
def kme(
    ports: tuple[int, ...],
    host: str,
    state: Path | None,
    key_rate: float,
    stored_keys: int,
    lag: float,
    lifetime: float,
    drop_undelivered: bool,
    faults: tuple[tuple[str, str], ...],
    latency: float,
) -> None:
    """Run the development key servers KM1 and KM2: for trying out and testing. THEY ARE NOT QUANTUM.

    Keys come from this computer's random generator. Certificates are made on the first start, ready for
    `curl --cacert ca.pem --cert sae-2.pem --key sae-2.key`. SAE 2 (Alice) uses KM1, SAE 1 (Bob) KM2.
    """
    if len(ports) != 2:
        raise click.UsageError("give --port twice: KM1's and KM2's")
    configure_logging()
    link = LinkSettings(
        key_rate=key_rate,
        stored_key_limit=stored_keys,
        lag=lag,
        lifetime=lifetime,
        drops_undelivered=drop_undelivered,
        remembered=0,
    )
    servers = DevelopmentKMEs(state_dir=state, host=host, ports=(ports[0], ports[1]), link=link)
    for server in (servers.km1, servers.km2):
        server.latency = latency
        for call, kind in faults:
            server.misbehave(call, kind, times=None)
    uvloop.run(_run(servers))


async def _run(servers: DevelopmentKMEs) -> None:
    with stop_on_signals() as stop:
        async with servers:
            click.echo(announced(servers), nl=False)
            await stop.wait()
