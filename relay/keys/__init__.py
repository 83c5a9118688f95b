"""Quantum keys: the contract every key source keeps, and the KM client that speaks to real KMEs.
Standard: ETSI GS QKD 014 V1.1.1; read contract.py first.

From a message down to the wire::

    keyring.py     all keys of a site: peers, groups in order of health, the store first     build.py makes it
    pool.py        one KME group: fresh keys, pads, keys by key_ID
    fresh.py       one KME's fresh keys: ready, drawn, refilled           shelf.py stock.py prefetch.py batch.py
                   pads.py rotation.py                                undelivered.py
    gather.py      one KME's dec_keys: gathered, shared, kept before use  wishes.py lag.py
    receiver.py    received keys, written down as they come               under_way.py delivered.py
    km_client.py   the ETSI client     skip.py   the SKIP client     client.py   what both have
    calls.py       one call: breaker, time limit, retries                 breaker.py adaptive.py faults.py replies.py
    transport.py   one request, sent once                                 tls.py certificates.py
    shared.py      the clients that programs share, with a key cache      development.py

A program that wants keys and nothing else uses what this package exports, and reads its log through `logging`: below
"relay.keys", one event a line. Nothing that is exported needs any of the relay's mail, store or configuration.

Counted in accounts.py; shown by report.py, metrics.py, collector.py and events.py; timing.py is time, for tests to
replace.
"""

from relay.errors import (
    ConfigError,
    KeyNotFound,
    KeyUnavailable,
    KMEBadReply,
    KMEExhausted,
    KMEMisconfigured,
    KMEUnreachable,
    StoreUnavailable,
)
from relay.keys.breaker import BreakerRules
from relay.keys.client import Quirks
from relay.keys.contract import IssuedKeys, Key, KeyReference, KeySource
from relay.keys.faults import (
    Call,
    ErrorRule,
    Fault,
    KeysMissing,
    KMEBusy,
    KMERefusedRequest,
    KMEUnanswered,
    NotAsked,
)
from relay.keys.km_client import OptimizedKMClient
from relay.keys.pads import Pad
from relay.keys.pool import KMEGroup
from relay.keys.prefetch import Prefetch
from relay.keys.replies import KeyStatus
from relay.keys.shared import CachedKMClient, get_optimized_km_clients
from relay.keys.tls import TLSRules

__all__ = [
    "BreakerRules",
    "CachedKMClient",
    "Call",
    "ConfigError",
    "ErrorRule",
    "Fault",
    "IssuedKeys",
    "KMEBadReply",
    "KMEBusy",
    "KMEExhausted",
    "KMEGroup",
    "KMEMisconfigured",
    "KMERefusedRequest",
    "KMEUnanswered",
    "KMEUnreachable",
    "Key",
    "KeyNotFound",
    "KeyReference",
    "KeySource",
    "KeyStatus",
    "KeyUnavailable",
    "KeysMissing",
    "NotAsked",
    "OptimizedKMClient",
    "Pad",
    "Prefetch",
    "Quirks",
    "StoreUnavailable",
    "TLSRules",
    "get_optimized_km_clients",
]
