"""Alice's relay with two peers, Bob and Carol, whose keys come over wires of their own, so that each can fail alone.
Standard: Carol is SAE 3 at KM2; what is wanted beyond tests/testlib/sites.py is written behind its relay.toml.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from relay.config import TCPAddress
from relay.kme import DevelopmentKMEs, LinkSettings
from relay.kme.certificates import SAES
from tests.testlib.identities import Identities
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, serving
from tests.testlib.wire import Wire

NO_PREFETCH = "prefetch = false\none_batch_at_a_time = false\n"

_CAROL = """
[kmes.to-carol]
url = "https://{wire}"
group = "alice-carol"
ca = "{state}/ca.pem"
certificate = "{state}/sae-2.pem"
key = "{state}/sae-2.key"
retry_attempts = 0
retry_delay = 0.01
{no_prefetch}
[peers.carol]
domains = ["carol.example"]
sae_id = "3"
kme_groups = ["alice-carol"]
"""


@dataclass
class ThreeSites:
    """`outgoing` is Alice's relay and `network` is where it sends; `bob` and `carol` are the two incoming relays.

    What these open ends in `mailboxes`. `to_carol` is the wire over which Alice has her keys for Carol.
    """

    kmes: DevelopmentKMEs
    alice: Site
    network: Sink
    mailboxes: Sink
    outgoing: TCPAddress
    incoming: Mapping[str, TCPAddress]
    to_carol: Wire

    def keys_issued(self) -> int:
        """How many keys Alice's KME has given her so far."""
        return self.kmes.link.issued["KM1"]


@asynccontextmanager
async def three_sites(
    directory: Path,
    policies: Mapping[str, str],
    identities: Identities | None = None,
) -> AsyncIterator[ThreeSites]:
    """All three sites running. With `identities` Alice and Bob have certificates; Carol never has."""
    async with AsyncExitStack() as stack:
        mailboxes = await stack.enter_async_context(Sink())
        network = await stack.enter_async_context(Sink())
        link = LinkSettings(key_rate=1_000_000, max_sae_id_count=0)  # no key is spent on a trial
        servers = DevelopmentKMEs(
            state_dir=directory / "kme", host="127.0.0.1", ports=(0, 0), link=link, saes={**SAES, "3": "KM2"}
        )
        kmes = await stack.enter_async_context(servers)
        real = urlsplit(kmes.urls[0])
        to_carol = await stack.enter_async_context(Wire(TCPAddress("127.0.0.1", real.port or 443)))
        incoming = {}
        for name in ("bob", "carol"):
            site = make_site(
                directory / name, name, state=kmes.state_dir, kme_url=kmes.urls[1], incoming=mailboxes.address,
                identities=identities if name == "bob" else None,
            )  # fmt: skip
            if name == "carol":
                _as_carol(site)
            incoming[name] = (await stack.enter_async_context(serving(site)))["incoming"]
        alice = make_site(
            directory / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=network.address,
            policies=policies, identities=identities, kme_settings=NO_PREFETCH,
        )  # fmt: skip
        with alice.config_file.open("a") as file:
            file.write(_CAROL.format(wire=to_carol.address, state=kmes.state_dir, no_prefetch=NO_PREFETCH))
        outgoing = (await stack.enter_async_context(serving(alice)))["outgoing"]
        yield ThreeSites(kmes, alice, network, mailboxes, outgoing, incoming, to_carol)


def _as_carol(site: Site) -> None:
    """make_site() knows two sites: everybody but Alice is SAE 1 there."""
    text = site.config_file.read_text()
    for before, after in (('sae_id = "1"', 'sae_id = "3"'), ("sae-1.", "sae-3."), ("alice-bob", "alice-carol")):
        assert before in text
        text = text.replace(before, after)
    site.config_file.write_text(text)
