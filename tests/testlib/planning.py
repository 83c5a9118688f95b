"""A planner with levels otp and aes as they are, stand-ins for those with certificates, and keys as a test says.
Nothing listens and nothing is stored: what would be sealed, and by whose keys, is all that can be seen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import cast

from relay.config import Config, TCPAddress, load_config
from relay.errors import KeyUnavailable
from relay.formats.pieces import Pieces
from relay.journey.planner import Planner
from relay.keys import Key, KeyReference
from relay.keys.pads import Pad, pad_of, plan_pad
from relay.keys.types import SealingKey
from relay.schemes import Parties, Scheme, SealedPayload
from relay.schemes.aes import AES
from relay.schemes.otp import OneTimePad
from relay.smime.sealing import SMIMESealer
from tests.testlib.policy_made import OWN, TAKES_FROM
from tests.testlib.policy_reference import Ability
from tests.testlib.sites import make_site

GROUP = "alice-bob"
SAES = {"bob": "1", "carol": "sae-carol"}

Supplies = Mapping[tuple[str, str], str]
"""For each peer and each of `otp` and `aes` whether there is key: "all", "normal" (the rest is reserved), "none"."""


@cache
def config(directory: Path) -> Config:
    """Alice's, with two peers."""
    site = make_site(directory, "alice", state=directory, kme_url="https://[::1]:1", outgoing=TCPAddress("::1", 1))
    found = load_config(site.config_file)
    bob = found.peers["bob"].model_copy(update={"takes_from": tuple(TAKES_FROM["bob"])})
    carol = bob.model_copy(update={"sae_id": SAES["carol"], "takes_from": tuple(TAKES_FROM["carol"])})
    peers = {"bob": bob, "carol": carol}
    domains = found.site.model_copy(update={"domains": tuple(OWN)})
    return found.model_copy(update={"peers": peers, "site": domains})


class SignedStandIn:
    """In place of the levels that need certificates."""

    quantum = False

    def __init__(self, name: str) -> None:
        self.name = name

    def obstacle(self, parties: Parties) -> str:
        return ""

    async def seal(self, payload: bytes, parties: Parties, keys: object) -> SealedPayload:
        return SealedPayload(Pieces.of(b"0", payload))


class SMIMEStandIn:
    """In place of the certificates of others: everybody has one, or nobody."""

    def __init__(self, *, can: bool) -> None:
        self._can = can

    def certificate(self, sender: str, recipient: str) -> tuple[object | None, str]:
        ours = not sender or sender.removesuffix(".").rpartition("@")[2].lower() in OWN
        return (self, "") if self._can and ours else (None, "cannot")

    def seal(self, original: bytes, certificate: object, mailboxes: object) -> bytes:
        return b"X: y\r\n" + original


class Keys:
    """KeyRing's part: gives keys, or says whether it could, as a case says."""

    def __init__(self, supplies: Supplies) -> None:
        self._supplies = supplies
        self.taken = 0

    def _check(self, peer: str, use: str, low: bool) -> None:
        supply = self._supplies.get((peer, use), "all")
        if supply == "none" or (supply == "normal" and low):
            raise KeyUnavailable(f"no key ({supply})")

    def _keys(self, number: int) -> list[Key]:
        self.taken += number
        return [Key(f"{self.taken:06}-{count:06}", os.urandom(32)) for count in range(number)]

    async def take(self, peer: str, *, level: str = "aes", size: int = 0, low_priority: bool = False) -> SealingKey:
        self._check(peer, "aes", low_priority)
        [key] = self._keys(1)
        return SealingKey(key, KeyReference(key.key_ID, "alice", SAES[peer], GROUP))

    async def take_pad(self, peer: str, hidden: int, *, level: str = "otp", low_priority: bool = False) -> Pad:
        self._check(peer, "otp", low_priority)
        keys = self._keys(plan_pad(hidden, None).number)
        return pad_of(keys, [KeyReference(key.key_ID, "alice", SAES[peer], GROUP) for key in keys], hidden)[0]

    async def can_supply(self, peer: str, hidden: int, *, low_priority: bool = False) -> int:
        self._check(peer, "otp" if hidden else "aes", low_priority)
        return plan_pad(hidden, None).cost if hidden else 32


def planner_of(can: Ability, directory: Path, *, compression: bool) -> Planner:
    """With real levels otp and aes."""
    base = config(directory)
    peers = {
        name: peer.model_copy(update={"kme_groups": () if name in can.no_kme else (GROUP,)})
        for name, peer in base.peers.items()
    }
    levels = cast("dict[str, Scheme]", {"otp": OneTimePad(compression=compression), "aes": AES()})
    levels |= cast("dict[str, Scheme]", {name: SignedStandIn(name) for name in ("pqc", "rsa")})
    for name, level in levels.items():
        cannot = {peer for which, peer in can.cannot if which == name}
        level.obstacle = lambda parties, cannot=cannot: "cannot" if parties.peer in cannot else ""  # type: ignore[method-assign,misc]
    otp = base.otp.model_copy(update={"compression": compression})
    smime = cast("SMIMESealer", SMIMEStandIn(can=("smime", "bob") not in can.cannot))
    return Planner(base.model_copy(update={"peers": peers, "otp": otp}), levels, smime=smime)
