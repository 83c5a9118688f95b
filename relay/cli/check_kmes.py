"""`check` on each KME: whether it answers, its keys, the SAE that it takes us for, and certificates that expire soon.
Standard: ETSI GS QKD 014 V1.1.1, 5.2 (status). Status uses no key. A KME that reports none is
asked for one; further trials run only on request.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import UTC, datetime

from relay.cli.check_site import State
from relay.cli.keys import serves
from relay.cli.keys_trial import draw_a_key
from relay.cli.quarantine import existing_store
from relay.config import Config, KMESettings
from relay.errors import ConfigError, KMEExhausted, RelayError
from relay.keys.build import km_client
from relay.keys.client import KMEClient
from relay.keys.development import NOT_QUANTUM, from_development_kme
from relay.keys.greeting import greet, text_of, trouble_with_unknown
from relay.keys.kme_store import another_name
from relay.keys.replies import USUAL_KEY_BITS, KeyStatus
from relay.keys.report import clocks_differ
from relay.keys.types import Found
from relay.keys.undelivered import recalled, remember

_FOUND: dict[Found, str] = {
    "kept": "kept",
    "dropped": "dropped when more are asked for: one batch at a time is drawn",
    "counted": "dropped when more are asked for: the next batch is drawn once the peer has fetched the last one",
    "untold": (
        "whether they are kept when more are asked for is unknown: one batch at a time is drawn. `qumail-relay keys "
        "trial` finds it out with the peer; or set one_batch_at_a_time = false if its maker says that it keeps them"
    ),
}


async def kme_states(config: Config, trial_keys: bool) -> AsyncIterator[State]:
    """Asks each KME for the status of each of its peers, and for keys of the first peer if `trial_keys`."""
    for name, kme in config.kmes.items():
        title, where = f"KME {name}", kme.url
        try:
            client = km_client(name, kme.model_copy(update={"retry_attempts": 0, "pool_connections": 1}))
        except ConfigError as error:
            yield title, where, tuple(error.problems)
            continue
        async with client:
            first = True
            if not any(kme.group in peer.kme_groups for peer in config.peers.values()):
                yield await _without_peer(title, config, kme, client)
            for peer_name, peer in config.peers.items():
                if kme.group not in peer.kme_groups:
                    continue
                try:
                    status = await client.check_key_status(peer.sae_id)
                except RelayError as error:
                    yield title, where, (text_of(error),)
                    break
                detail = f"{where}: {status.stored_key_count} keys for peer {peer_name}"
                detail += _half_known(kme, status) + _development(kme)
                wrong = str(another_name(status, (config.site.sae_id, kme.calls_us), peer.sae_id) or "")
                wrong = wrong or clocks_differ(name, client.transport.clock_ahead_s)
                pause = kme.one_batch_at_a_time
                if not wrong and (said := await trouble_with_unknown(client, peer.sae_id, pause=pause)):
                    wrong = f"arriving mail may not get its keys: {said}"
                if not wrong and status.stored_key_count == 0 and not serves(config):
                    wrong = await _shortage(client, peer.sae_id)
                yield title, detail, (wrong,) if wrong else ()
                if trial_keys:
                    yield await _drawn(f"{title}: a key for peer {peer_name}", client, peer.sae_id)
                if first and kme.one_batch_at_a_time is None:
                    first = False
                    yield await _undelivered(title, config, client, status, peer.sae_id, trial=trial_keys)
            if ending := client.transport.tls.ending(datetime.now(UTC)):
                yield f"{title}: certificates", "", tuple(ending)


def not_quantum(config: Config) -> Iterator[str]:
    """One line for each KME of this project: nobody must take its keys for quantum keys."""
    for name, kme in config.kmes.items():
        if from_development_kme(kme.ca):
            yield f"KME {name} gives {NOT_QUANTUM}: whatever mail says of otp or aes, no quantum link is behind it"


async def _without_peer(title: str, config: Config, kme: KMESettings, client: KMEClient) -> State:
    """Whether a KME whose group no peer has answers and accepts us."""
    answer = await greet(client, (config.site.sae_id, kme.calls_us), None)
    pause = kme.one_batch_at_a_time
    trouble = answer.trouble or await trouble_with_unknown(client, config.site.sae_id, ours=True, pause=pause)
    detail = f"{kme.url}: knows this relay; no peer has its group {kme.group!r}"
    return title, detail + _development(kme), (trouble,) if trouble else ()


def _development(kme: KMESettings) -> str:
    return f"; {NOT_QUANTUM}" if from_development_kme(kme.ca) else ""


async def _shortage(client: KMEClient, slave_sae: str) -> str:
    """Why a KME that reports no key gives none; "" if it gives one: some report only keys that nobody has fetched."""
    try:
        await draw_a_key(client, slave_sae)
    except KMEExhausted as error:
        return f"{error}; ask its operator why no more come"
    except RelayError as error:
        return text_of(error)
    return ""


async def _drawn(title: str, client: KMEClient, slave_sae: str) -> State:
    """Whether the KME gives a key. `keys trial` also tests whether the peer finds it."""
    try:
        return title, await draw_a_key(client, slave_sae), ()
    except RelayError as error:
        return title, "", (text_of(error),)


async def _undelivered(
    title: str, config: Config, client: KMEClient, status: KeyStatus, slave_sae: str, *, trial: bool
) -> State:
    """What the KME does with keys a peer has not fetched when more are requested; a starting relay tests it too."""
    title += ": undelivered keys"
    place, found = (client.url, config.site.sae_id, slave_sae), None
    try:
        found = await client.keeps_undelivered(slave_sae, config.site.sae_id) if trial else None
    except RelayError as error:
        return title, "", (text_of(error),)
    with suppress(RelayError):  # store errors are reported elsewhere
        async with existing_store(config) as store:
            known = await recalled(store.trials, place, status) if store is not None else None
            found = known if found in (None, "untold") and known is not None else found
            if store is not None and found is not None and found != known:
                await remember(store.trials, place, status, found)
    return title, "not tried yet; the first mail does it" if found is None else _FOUND[found], ()


def _half_known(kme: KMESettings, status: KeyStatus) -> str:
    """Warns if keys of a pad, known to an observer but for 16 bytes, could be requested as key-encryption keys."""
    if kme.use != "both" or (status.max_key_size or status.key_size or USUAL_KEY_BITS) > USUAL_KEY_BITS:
        return ""
    return (
        f"; its keys of {USUAL_KEY_BITS} bits serve otp and aes, so who reads the wire may know half of one "
        'at level aes: write use = "otp" or use = "aes" at both sites where that is too little'
    )
