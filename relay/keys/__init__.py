"""Quantum keys: the contract every key source keeps, and the KM client that speaks to real KMEs.
Standard: ETSI GS QKD 014 V1.1.1; read contract.py first.

From a message down to the wire::

    keyring.py     all keys of a site: peers, groups in order of health, the store first     build.py makes it
    pool.py        one KME group: fresh keys, pads, keys by key_ID
    fresh.py       one KME's fresh keys: ready, drawn, refilled     stock.py prefetch.py batch.py pads.py rotation.py
    gather.py      one KME's dec_keys: gathered, shared, kept before use  wishes.py lag.py
    km_client.py   the ETSI client     skip.py   the SKIP client     client.py   what both have
    calls.py       one call: breaker, time limit, retries                 breaker.py adaptive.py faults.py replies.py
    transport.py   one request, sent once                                 tls.py

Counted in accounts.py; shown by report.py, metrics.py and collector.py; timing.py is time, for tests to replace.
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
