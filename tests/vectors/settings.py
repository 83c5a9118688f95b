"""Bob's relay.toml, by which the test vectors are opened.
Standard: deploy/SETTINGS.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tests.vectors.case import ALICE, Peer

SITE = """\
[site]
name = "bob"
domains = ["bob.example"]
sae_id = "1"
hostname = "relay.bob.example"
[incoming]
listen = "127.0.0.1:0"
next_hop = "127.0.0.1:25"
[policies]
directory = "policies"
[store]
database = "relay.db"
secret = "site.secret"
"""


KME = """\
[kmes.{group}]
url = "https://127.0.0.1:1"
group = "{group}"
use = "{use}"
ca = "ca.pem"
certificate = "sae.pem"
key = "sae.key"
"""


PEER = """\
[peers.{name}]
domains = {domains}
sae_id = "{sae}"
kme_groups = {groups}
accept = {accept}
forwards = {forwards}
key_max_messages = {messages}
"""


def configuration(peers: Iterable[Peer] = (ALICE,), groups: Mapping[str, str] | None = None) -> str:
    """Bob's relay.toml."""
    kmes = [KME.format(group=group, use=use) for group, use in (groups or {"alice-bob": "both"}).items()]
    return SITE + "".join(kmes) + "".join(PEER.format(**_parts(peer)) for peer in peers)


def _parts(peer: Peer) -> dict[str, object]:
    lists = {name: [each for each in str(value).split(",") if each] for name, value in peer._asdict().items()}
    return peer._asdict() | {name: lists[name] for name in ("domains", "groups", "accept", "forwards")}


CONFIG = configuration()
