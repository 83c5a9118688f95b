"""Quantum keys: one ring for all keys of a site, and the KM client that speaks to real KMEs.
Standard: ETSI GS QKD 014 V1.1.1; read types.py and ring.py first.

From a message down to the wire::

    ring.py        all keys of a site: peers, groups in order of health, the store first     build.py makes it
    group.py       one KME group: each KME is asked in turn, for fresh keys and those of a mail   lag.py pads.py
    pool.py        one KME's fresh keys: who asks for them, and the requests  issued.py undelivered.py
    kme_store.py   what the KME says of its own store, and what was seen of it   own_name.py
    state.py       what is wanted, ready and being drawn, as one value       stock.py refill.py
    fetch.py       one KME's dec_keys: in bulk, shared, kept before use      pending.py
    etsi014.py     the ETSI client, with edition1.py     skip.py   the SKIP client
    client.py      what both have                                    settings.py
    asking.py      one call: breaker, time limit, retries            health.py faults.py replies.py late.py
    transport.py   one request, sent once                            http.py tls.py
    development.py the clients that programs share, with a key cache

A program that wants keys and nothing else uses what this package exports, and reads its log through `logging`: below
"relay.keys", one event a line. Nothing that is exported needs any of the relay's mail, store or configuration.

Counted in accounts.py; shown by report.py; said in the log by events.py.
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
from relay.keys.counts import Board, Numbers
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
from relay.keys.ring import KeyRing, PeerKeys, Rotation, SupplyLimits
from relay.keys.settings import ClientOptions, ClientSettings, Quirks
from relay.keys.skip import SKIPClient
from relay.keys.tls import TLSRules
from relay.keys.types import SAEID, IssuedKeyStore, Key, KeyReference, ReceivedKeyStore, SealingKey

__all__ = [
    "SAEID",
    "Board",
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
