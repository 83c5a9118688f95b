"""The schemes of all levels and of the layers of further KEMs: what seals, opens or plans takes them from here.
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
    """The schemes by name, as `config` sets them up: those of levels by the level's, then those of further KEMs.

    The module `relay.schemes.NAME` has that of level NAME, and its function `scheme` makes it.
    """
    schemes: list[Scheme] = [import_module(f"{__package__}.{level.name}").scheme(config) for level in LEVELS]
    return {scheme.name: scheme for scheme in (*schemes, *map(FurtherKEM, FURTHER_KEMS))}
