"""The schemes of all levels and of the layers of further KEMs, for sealing, opening and planning.
Their order is no preference: policy lists levels by name.
"""

from __future__ import annotations

from importlib import import_module

from relay.config import Config
from relay.formats.cms import FURTHER_KEMS
from relay.levels import LEVELS
from relay.schemes import Scheme
from relay.schemes.further_kem import FurtherKEM


def all_schemes(config: Config | None = None) -> dict[str, Scheme]:
    """The schemes by name, configured by `config`: those of levels, then those of further KEMs.

    The function `scheme` of module `relay.schemes.NAME` returns that of level NAME.
    """
    schemes: list[Scheme] = [import_module(f"{__package__}.{level.name}").scheme(config) for level in LEVELS]
    return {scheme.name: scheme for scheme in (*schemes, *map(FurtherKEM, FURTHER_KEMS))}
