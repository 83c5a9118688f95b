"""Quantum keys: one ring for all keys of a site, and clients for real KMEs.
Standard: ETSI GS QKD 014 V1.1.1; read types.py and ring.py first.

From a message down to the wire::

    ring.py        all keys of a site: peers, groups in order of health, the store first   rotation.py build.py
    group.py       one KME group: asks its KMEs in turn, for fresh keys and those of a mail   lag.py
    member.py      one KME of a group: whether it is worth asking now             pads.py
    pool.py        one KME's fresh keys: callers and requests  issued.py undelivered.py
    state.py       keys wanted, ready and being drawn, as one value       stock.py refill.py
    kme_store.py   what the KME reports about its store and about us
    fetch.py       one KME's dec_keys: batched, shared, stored before use      pending.py
    etsi014.py     the ETSI client, with edition1.py                         skip.py: the SKIP client
    client.py      their common base                                           settings.py
    asking.py      one call: breaker, time limit, retries                    health.py faults.py replies.py late.py
    transport.py   one request, sent once                                    http.py tls.py
    development.py the clients that programs share, with a key cache

A program that needs only keys uses what this package exports. Events go to `logging`, below "relay.keys", one a line.
The exports need none of the relay's mail, store or configuration.

Counted in stock.py, on a board of counts.py; shown by report.py; logged by events.py. Programs: README.md.
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
from relay.keys.counts import KeyCounts, Numbers
from relay.keys.development import CachedKMClient, get_optimized_km_clients
from relay.keys.etsi014 import OptimizedKMClient
from relay.keys.faults import (
    Call,
    ErrorRule,
    KeysMissing,
    KMEBusy,
    KMEFault,
    KMERefusedRequest,
    KMEUnanswered,
    NotAsked,
)
from relay.keys.group import KMEGroup
from relay.keys.health import BreakerRules
from relay.keys.pads import Pad
from relay.keys.refill import Prefetch
from relay.keys.replies import KeyStatus
from relay.keys.report import KeyReport
from relay.keys.ring import KeyRing, PeerKeys, SupplyLimits
from relay.keys.rotation import Rotation
from relay.keys.settings import ClientOptions, ClientSettings, Quirks
from relay.keys.skip import SKIPClient
from relay.keys.tls import TLSRules
from relay.keys.types import SAEID, IssuedKeyStore, Key, KeyReference, ReceivedKeyStore, SealingKey

__all__ = [
    "SAEID",
    "BreakerRules",
    "CachedKMClient",
    "Call",
    "ClientOptions",
    "ClientSettings",
    "ConfigError",
    "ErrorRule",
    "IssuedKeyStore",
    "KMEBadReply",
    "KMEBusy",
    "KMEExhausted",
    "KMEFault",
    "KMEGroup",
    "KMEMisconfigured",
    "KMERefusedRequest",
    "KMEUnanswered",
    "KMEUnreachable",
    "Key",
    "KeyCounts",
    "KeyNotFound",
    "KeyReference",
    "KeyReport",
    "KeyRing",
    "KeyStatus",
    "KeyUnavailable",
    "KeysMissing",
    "NotAsked",
    "Numbers",
    "OptimizedKMClient",
    "Pad",
    "PeerKeys",
    "Prefetch",
    "Quirks",
    "ReceivedKeyStore",
    "Rotation",
    "SKIPClient",
    "SealingKey",
    "StoreUnavailable",
    "SupplyLimits",
    "TLSRules",
    "get_optimized_km_clients",
]
