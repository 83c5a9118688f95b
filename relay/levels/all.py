"""All levels that this relay can do: who seals, opens, or only foresees how mail would be sealed, takes them from here.
Their order is nobody's preference: policy lists levels by name.
"""

from __future__ import annotations

from relay.cms import FURTHER_KEMS
from relay.config import Config
from relay.levels import Level
from relay.levels.aes import AES
from relay.levels.further_kem import FurtherKEM
from relay.levels.otp import OneTimePad
from relay.levels.pqc import PQC
from relay.levels.rsa import RSA


def all_levels(config: Config) -> dict[str, Level]:
    """The levels by name."""
    otp = OneTimePad(config.otp.padding, compression=config.otp.compression)
    levels: list[Level] = [otp, AES(), PQC(), RSA(), *map(FurtherKEM, FURTHER_KEMS)]
    return {level.name: level for level in levels}
