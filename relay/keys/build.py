"""Builds the key ring of a site from its settings: one client for each KME, one group for each name, one ring.
All settings of [kmes.*] and of peers' keys are applied here.
"""

from __future__ import annotations

from collections.abc import Mapping

from relay.config import Config, KMESettings, PeerSettings
from relay.keys.counts import KeyCounts, Numbers
from relay.keys.etsi014 import OptimizedKMClient
from relay.keys.faults import Call, ErrorRule, KMEFault
from relay.keys.group import KMEGroup, Prefetch
from relay.keys.health import BreakerRules
from relay.keys.http import Receiver
from relay.keys.psk import PSK
from relay.keys.ring import KeyRing, PeerKeys, SupplyLimits
from relay.keys.rotation import Rotation
from relay.keys.settings import Quirks
from relay.keys.skip import SKIPClient
from relay.keys.tls import TLSRules
from relay.keys.types import REAL_TIME, IssuedKeyStore, ReceivedKeyStore, Timing, TrialStore

BREAKER_DELAYS, BREAKER_LONGEST = 5, 15
"""First and longest breaker pause, as multiples of `retry_delay`: longer than the attempts of a call."""

SMALL_SHARE = 32
"""What is kept ready without use is this part of `cache_high`."""


def key_ring(
    config: Config,
    received: ReceivedKeyStore | None = None,
    issued: IssuedKeyStore | None = None,
    trials: TrialStore | None = None,
    *,
    receiver: Receiver | None = None,
    prefetch: bool = True,
    board: KeyCounts | None = None,
    timing: Timing = REAL_TIME,
) -> KeyRing:
    """The key ring of the site, not started yet. Raises ConfigError for unusable certificates.

    `receiver` fetches received keys, and stores them. Without `prefetch` keys are drawn only when needed, so that a
    single message burns no others.
    """
    board = board or Numbers()
    members: dict[str, dict[str, KMESettings]] = {}
    for name, kme in config.kmes.items():
        members.setdefault(kme.group, {})[name] = kme
    groups = {
        group: _group(group, kmes, config.site.sae_id, receiver, prefetch=prefetch, board=board, timing=timing)
        for group, kmes in members.items()
    }
    return KeyRing(
        config.site.sae_id,
        groups,
        {name: peer_keys(peer) for name, peer in config.peers.items()},
        received=received,
        issued=issued,
        trials=trials,
        limits={name: SupplyLimits(kme.reserve, kme.alarm) for name, kme in config.kmes.items()},
        board=board,
        timing=timing,
    )


def km_client(
    name: str, kme: KMESettings, *, board: KeyCounts | None = None, timing: Timing = REAL_TIME
) -> OptimizedKMClient | SKIPClient:
    """The client of one [kmes.*] table. Raises ConfigError for unusable certificates."""
    errors = tuple(
        ErrorRule(KMEFault(rule.means), rule.code, None if rule.call == "any" else Call(rule.call), rule.text)
        for rule in kme.errors
    )
    kind: type[OptimizedKMClient | SKIPClient] = SKIPClient if kme.interface == "skip" else OptimizedKMClient
    return kind(
        kme.url,
        ca=kme.ca,
        certificate=kme.certificate,
        key=kme.key,
        psk=PSK(kme.psk_identity, kme.psk_file) if kme.psk_file is not None else None,
        retry_attempts=kme.retry_attempts,
        retry_delay=kme.retry_delay,
        timeout=kme.timeout,
        adaptive=kme.adaptive,
        pool_connections=kme.pool_connections,
        pool_maxsize=kme.pool_maxsize,
        name=name,
        quirks=Quirks(kme.method, kme.size_unit, kme.integer_key_ids, errors),
        tls=TLSRules(kme.tls_ciphers or None, kme.kme_id or None, kme.name_from),
        breaker=BreakerRules(delay=BREAKER_DELAYS * kme.retry_delay, longest=BREAKER_LONGEST * kme.retry_delay),
        timing=timing,
        board=board,
    )


def peer_keys(peer: PeerSettings) -> PeerKeys:
    """The key settings of one [peers.*] table."""
    rotation = Rotation(peer.key_max_messages, peer.key_max_bytes, peer.key_max_age)
    return PeerKeys(peer.sae_id, peer.kme_groups, rotation)


def prefetch_of(kme: KMESettings) -> Prefetch:
    """The prefetch settings of a KME."""
    high = kme.cache_high if kme.prefetch else 0
    return Prefetch(low=-(-high // SMALL_SHARE), high=high, lifetime=kme.usable_for)


def _group(
    group: str,
    kmes: Mapping[str, KMESettings],
    own_sae: str,
    receiver: Receiver | None,
    *,
    prefetch: bool,
    board: KeyCounts,
    timing: Timing,
) -> KMEGroup:
    clients = [km_client(name, kme, board=board, timing=timing) for name, kme in kmes.items()]
    if receiver is not None:
        for client in clients:
            client.receive_through(receiver)
    return KMEGroup(
        group,
        clients,
        {name: prefetch_of(kme) if prefetch else Prefetch(low=0, high=0) for name, kme in kmes.items()},
        lag_patience=max(kme.lag_patience for kme in kmes.values()),
        board=board,
        timing=timing,
        use=next(iter(kmes.values())).use,
        one_batch={name: kme.one_batch_at_a_time for name, kme in kmes.items()},
        known_as={name: (own_sae, kme.calls_us) for name, kme in kmes.items()},
    )
