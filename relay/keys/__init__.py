"""Quantum keys: the contract every key source keeps, and the KM client that speaks to real KMEs.
Standard: ETSI GS QKD 014 V1.1.1; read contract.py first.
"""

from relay.keys.contract import Key, KeyReference, KeySource
from relay.keys.km_client import OptimizedKMClient, get_optimized_km_clients
from relay.keys.replies import KeyStatus

__all__ = [
    "Key",
    "KeyReference",
    "KeySource",
    "KeyStatus",
    "OptimizedKMClient",
    "get_optimized_km_clients",
]
