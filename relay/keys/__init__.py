"""Quantum keys for programs: clients of key servers (KMEs), groups of KMEs, and all keys of a site.
Standard: ETSI GS QKD 014 V1.1.1; Cisco SKIP by the same calls.

One side draws a key and tells the other its key_ID. That one gets the same key from its own KME, once::

    files = {"ca": "ca.pem", "certificate": "sae-2.pem", "key": "sae-2.key"}
    async with OptimizedKMClient("https://localhost:13000", **files) as kme:
        status = await kme.check_key_status(1)        # what the KME has for SAE 1: status.stored_key_count
        [key] = await kme.request_enc_keys(1)         # key.key_ID for the other side, key.key the 32 bytes

    async with OptimizedKMClient("https://localhost:14000", **other_files) as kme:  # with sae-1.pem and sae-1.key
        [same] = await kme.request_dec_keys(2, [key.key_ID])

What there is, each step with all that is above it:

- `OptimizedKMClient`, `SKIPClient`: one KME; connections, retries, timeouts, a breaker; callers share requests.
- `CachedKMClient`: keys are drawn ahead, in the background.
- `get_optimized_km_clients()`: two of these for a whole program.
- `KMEGroup`: several KMEs that give the same keys; the healthiest is asked, then the next one.
- `KeyRing`: all peers and groups of a site; keys received are stored before they are used, no key is used twice.

Settings are keywords, and `ClientSettings` says what each does. A failure is a `KeyUnavailable`; its text says why:

- `KMEUnreachable`: no answer after all attempts; `KMEBusy`: it asks for a pause; `NotAsked`: the breaker is open.
- `KMEExhausted`: it has too few keys now; `KMEMisconfigured`: somebody has to act; `KMEBadReply`: not to be believed.
- `KeyNotFound`: that key is not there; `KeysMissing`: some of several, `found` has the others.

A wrong setting is a `ConfigError`, a second event loop a `RuntimeError`. `Numbers` counts; events go to `logging`, one
a line. README.md beside this file has whole programs. `python -m relay.kme` starts two KMEs for trying.

The files, from a message down to the wire::

    ring.py        all keys of a site: peers, groups in order of health, the store first   rotation.py build.py
    group.py       one KME group: asks its KMEs in turn, for fresh keys and those of a mail
    member.py      one KME of a group: whether it is worth asking now             pads.py
    pool.py        one KME's fresh keys: callers and requests  issued.py undelivered.py
    state.py       keys wanted and ready, as one value                      stock.py refill.py
    kme_store.py   what the KME reports about its store and about us
    fetch.py       one KME's dec_keys, stored before use
    etsi014.py     the ETSI client                                           skip.py: the SKIP client
    client.py      their common base: callers share requests                   settings.py takes.py untaken.py
    asking.py      one call: breaker, time limit, retries                    health.py faults.py replies.py
    transport.py   one request, sent once                                    http.py tls.py
    forks.py       what a forked process must not have
    development.py the clients that programs share, with a key cache            pairing.py

Counted in stock.py, on a board of counts.py; shown by report.py; logged by events.py.
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
from relay.keys.development import CachedKMClient, KMClients, KMOptions, get_optimized_km_clients
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
    "KMClients",
    "KMEBadReply",
    "KMEBusy",
    "KMEExhausted",
    "KMEFault",
    "KMEGroup",
    "KMEMisconfigured",
    "KMERefusedRequest",
    "KMEUnanswered",
    "KMEUnreachable",
    "KMOptions",
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
