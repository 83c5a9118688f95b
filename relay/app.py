"""Builds the parts of a running relay out of relay.toml: the only place that picks concrete classes.
Standard: whatever is started is stopped, in the opposite order, also when starting fails half-way.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from relay.budget import Budget
from relay.cms import FURTHER_KEMS
from relay.config import Address, Config, Direction, Peer
from relay.deliveries import Deliveries
from relay.dkim import Signer, SigningKey, arrivals, load_key
from relay.entry import Entry, Recipe
from relay.entry.auth import BackEnd, FileBackEnd, Logins
from relay.entry.auth_dovecot import DovecotBackEnd
from relay.entry.completion import Completion
from relay.entry.conversation import Conversation, Service
from relay.entry.imap import Mailboxes
from relay.entry.listening import Sockets, all_bound, close_all
from relay.entry.lmtp import LMTPConversation
from relay.entry.milter import InPlaceRecipe, MilterEntry
from relay.entry.shared_rates import SharedRates
from relay.entry.smtp import SMTPEntry
from relay.entry.submission import Rates, Submission
from relay.entry.tls import ServerTLS
from relay.entry.users import UserFile
from relay.forward import NextHop
from relay.identity import Identity, PeerCertificates, common_groups, load_identity, trusted_peers
from relay.incoming import Incoming
from relay.key_receiver import Receiving
from relay.keys.build import key_ring
from relay.keys.ring import KeyRing
from relay.levels import Level
from relay.levels.aes import AES
from relay.levels.further_kem import FurtherKEM
from relay.levels.otp import OneTimePad
from relay.levels.pqc import PQC
from relay.levels.rsa import RSA
from relay.opening import MailOpener
from relay.opening.layers import Layers
from relay.opening.original import Originals
from relay.outgoing import Outgoing
from relay.planner import Planner
from relay.policy.findings import kems_not_here
from relay.policy.reload import PoliciesInForce
from relay.quarantine.triage import Notices, QuarantineMetrics, Triage
from relay.sealing import Sealer
from relay.shadow import Shadow, ShadowRecord
from relay.stopping import Stop, Stopped, told_to_stop
from relay.store import Sent, SiteSecret, Store, claims, open_store
from relay.store.ledger import AddressHash, Ledger
from relay.store.sent import take_over
from relay.store.sole import sole_relay

log = structlog.get_logger(__name__)

SWEEP_S = 60.0
"""How often expired received keys are destroyed."""
SENT = "sent.spool"
"""Where it is written at once what has left: the directory's name."""
WRITE_DOWN_S = 10.0
"""How often `keys status` gets new figures."""
ALONE = "the second process, which asks KMEs for received keys, has ended: the relay is to be started anew, with both"
"""Why a relay stops that nobody has told to."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What seals and opens, without any entry: enough for `seal` and `open` on files."""

    config: Config
    policies: PoliciesInForce
    store: Store
    keys: KeyRing
    ledger: Ledger
    sealer: Sealer
    originals: Originals
    triage: Triage
    next_hops: dict[str, NextHop]
    dkim_keys: list[SigningKey]
    receiving: Receiving
    sent: Sent


@asynccontextmanager
async def parts(
    config: Config, *, prefetch: bool = True, key_receiver: socket.socket | None = None
) -> AsyncIterator[Parts]:
    """The parts that seal and open, closed at the end. Raises ConfigError and StoreUnavailable.

    Without `prefetch` a key is drawn only when it is needed, so that a single message burns no others. With
    `key_receiver` (relay/key_receiver.py) another process asks for received keys, which outlives this one.
    """
    async with AsyncExitStack() as stack:
        config, certificates = with_documents(config)
        identity = own_identity(config)
        policies = PoliciesInForce(config.policies.directory, config.peer_domains, max_bounce=config.max_bounce)
        secret = SiteSecret.load_or_create(config.store.secret)
        ledger = Ledger(config.ledger_file, AddressHash(secret if config.ledger.addresses == "hashed" else None))
        store = await open_store(config.store.database, secret, beat_file=config.store.secret.with_name("store.beat"))
        sent = Sent(config.state_directory / SENT, secret, lambda: store.settled)
        stack.callback(sent.close)  # after the store, whose last words may fail
        stack.push_async_callback(store.close)
        receiving = Receiving(config, secret, store.received, key_receiver)
        stack.push_async_callback(receiving.close)
        await receiving.take_over()
        stores = (store.received, store.issued_keys, store.trials)
        keys = key_ring(config, *stores, receiver=receiving.receiver, prefetch=prefetch)
        stack.push_async_callback(keys.close)
        levels = all_levels(config)
        opener = MailOpener(
            Layers(config, levels, keys, identity, certificates), store.received, store.openings, beat=store.beat
        )
        signing_keys = dkim_keys(config)
        next_hops = _next_hops(stack, config)
        yield Parts(
            config,
            policies,
            store,
            keys,
            ledger,
            Sealer(Planner(config, levels, identity, certificates), policies, keys),
            Originals(opener, policies, arrivals(config, signing_keys)),
            _triage(config, store, next_hops),
            next_hops,
            signing_keys,
            receiving,
            sent,
        )


def all_levels(config: Config) -> dict[str, Level]:
    """The levels that this relay can do, by name."""
    otp = OneTimePad(config.otp.padding, compression=config.otp.compression)
    levels: list[Level] = [otp, AES(), PQC(), RSA(), *map(FurtherKEM, FURTHER_KEMS)]
    return {level.name: level for level in levels}


def planner(config: Config, certificates: Mapping[str, PeerCertificates]) -> Planner:
    """What tells how mail would be sealed; `config` is one `with_documents`.

    Raises ConfigError where this site's own certificates cannot be used.
    """
    return Planner(config, all_levels(config), own_identity(config), certificates)


def with_documents(config: Config) -> tuple[Config, dict[str, PeerCertificates]]:
    """The configuration with the peers whose documents were imported, and the certificates in these.

    What [peers.*] says of such a peer counts; what it leaves open comes from the document. Raises ConfigError.
    """
    certificates = trusted_peers(config)
    peers = dict(config.peers)
    for name, document in certificates.items():
        table = peers.get(name) or Peer(domains=document.domains, sae_id=document.sae_id)
        groups = table.kme_groups or common_groups(config, document)
        peers[name] = table.model_copy(update={"kme_groups": groups})
    return config.model_copy(update={"peers": peers}), certificates


def dkim_keys(config: Config) -> list[SigningKey]:
    """The keys of [[dkim.keys]]. Raises ConfigError where one cannot be used."""
    return [load_key(table) for table in config.dkim.keys] if config.dkim else []


def own_identity(config: Config) -> Identity | None:
    """This site's keys and certificates, or None where there are none yet. Raises ConfigError."""
    if config.identity is None or not config.identity.directory.exists():
        return None
    return load_identity(config.identity.directory, passphrase=config.identity.passphrase)


@asynccontextmanager
async def running(
    config: Config, *, key_receiver: socket.socket | None = None, stop: Stop | None = None
) -> AsyncIterator[dict[str, Address]]:
    """A relay that serves; gives the real listening address of `outgoing`, `outgoing_lmtp`, `incoming` and so on.

    With `key_receiver` another process asks for received keys; `stop` is told where that has ended. Raises ConfigError,
    StoreUnavailable and Stopped when it cannot start.
    """
    async with AsyncExitStack() as stack:
        # Before a key is asked for or a file is changed: a relay that cannot listen costs nothing at each new start.
        sockets = await all_bound(config)
        stack.callback(close_all, sockets)
        if isinstance(config.store.database, Path):
            database = await asyncio.to_thread(config.store.database.resolve)
            await stack.enter_async_context(sole_relay(database))
        built = await stack.enter_async_context(parts(config, key_receiver=key_receiver))
        await built.store.beat.go_on()
        await built.store.claims.end_claims()
        await take_over_sent(config, built.store)
        await built.triage.refresh()
        for finding in kems_not_here(built.policies()):
            log.warning("kem_not_available", cause=str(finding))
        _in_background(stack, "key intake", built.receiving.go_on())
        _in_background(stack, "sweep", _sweep(built.store, built.triage))
        _in_background(stack, "late words", _write_what_is_late(built.store, built.sent))
        secret_id = SiteSecret.load(config.store.secret).ids[0]
        _in_background(stack, "key report", _write_down_keys(built, secret_id))
        if stop is not None:
            _in_background(stack, "second process", _stop_without_receiver(built, secret_id, stop))
        _in_background(stack, "policy watch", built.policies.watch())
        submission = _submission(config)
        if submission:
            stack.callback(submission.logins.back_end.close)
            shared = SharedRates(built.store.spent, (*submission.logins.rates, *submission.rates.rates))
            await shared.exchange()
            stack.push_async_callback(shared.close)
            _in_background(stack, "shared rates", shared.keep_up())
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, built, submission)
        addresses: dict[str, Address] = {}
        budget = Budget(config.limits.messages_in_flight, config.limits.wait_for_room)
        entries: list[Entry] = []
        stack.push_async_callback(_stopped, entries)
        # Before a key is drawn: a relay whose second process ends each time is started anew again and again.
        if built.receiving.process_has_ended:
            raise Stopped(ALONE)
        built.keys.start()
        if config.outgoing:
            outgoing = outgoing_recipe(built)
            addresses |= await _serve(entries, sockets, config, budget, "outgoing", config.outgoing, outgoing)
            addresses |= await _serve_milter(entries, sockets, budget, "outgoing", config.outgoing, outgoing)
            if submission:
                addresses |= await _serve_submission(entries, sockets, config, budget, submission, outgoing)
        if config.incoming:
            incoming = incoming_recipe(built)
            addresses |= await _serve(entries, sockets, config, budget, "incoming", config.incoming, incoming)
            addresses |= await _serve_milter(entries, sockets, budget, "incoming", config.incoming, incoming)
        if config.imap:
            _in_background(stack, "mailboxes", mailboxes(built, budget).watch())
        log.info(
            "relay_serves",
            site=config.site.name,
            policy_version=built.policies().version,
            **{name: str(address) for name, address in addresses.items()},
        )
        yield addresses
        log.info("relay_stops")
        built.keys.wait_no_more()


async def take_over_sent(config: Config, store: Store) -> None:
    """What a killed relay had sent goes into the store, before a retry of it comes. Raises StoreUnavailable."""
    secret = SiteSecret.load(config.store.secret)
    if number := await take_over(config.state_directory / SENT, secret, store.journal, store.openings):
        log.warning("relay_was_killed", mails_sent_shortly_before=number)


def mailboxes(built: Parts, budget: Budget) -> Mailboxes:
    """What opens sealed messages in the mailboxes of [imap.*]."""
    config = built.config
    secret = SiteSecret.load(config.store.secret)
    directory, hold_for = config.store.secret.parent, config.quarantine.hold_for
    return Mailboxes(config.imap, built.originals, secret, budget, directory, hold_for)


def outgoing_recipe(built: Parts) -> Outgoing:
    """The journey out; [outgoing] must be set."""
    config = built.config
    assert config.outgoing is not None  # noqa: S101 - whoever calls has looked
    return Outgoing(
        config.outgoing,
        built.sealer,
        built.next_hops["outgoing"],
        built.ledger,
        Deliveries("outgoing", built.store.journal, built.sent),
        _shadow(config, built),
        Signer(built.dkim_keys) if built.dkim_keys else None,
    )


def incoming_recipe(built: Parts) -> Incoming:
    """The journey in; [incoming] must be set."""
    config = built.config
    assert config.incoming is not None  # noqa: S101 - whoever calls has looked
    return Incoming(
        config.incoming,
        built.originals,
        built.next_hops["incoming"],
        Deliveries("incoming", built.store.journal, built.sent),
        built.triage,
    )


async def serve(config: Config, key_receiver: socket.socket, ready: Callable[[Mapping[str, Address]], None]) -> None:
    """Runs the relay until SIGTERM or SIGINT. Raises Stopped where it has to be started anew.

    `key_receiver` is the way to the process that asks for received keys. `ready` is called once all entries listen,
    with their addresses.
    """
    with told_to_stop() as stop:
        async with running(config, key_receiver=key_receiver, stop=stop) as addresses:
            ready(addresses)
            await stop.wait()
        if stop.cause:
            raise Stopped(stop.cause)


async def _serve(
    entries: list[Entry],
    sockets: Sockets,
    config: Config,
    budget: Budget,
    name: str,
    direction: Direction,
    recipe: Recipe,
) -> dict[str, Address]:
    """The real addresses, by the names `outgoing` and `outgoing_lmtp`, of those that the direction sets."""
    wanted: dict[str, tuple[str, Address | None, type[Conversation]]] = {
        name: (f"{name}.listen", direction.listen, Conversation),
        f"{name}_lmtp": (f"{name}.lmtp", direction.lmtp, LMTPConversation),
    }
    addresses: dict[str, Address] = {}
    for key, (setting, listen, conversation) in wanted.items():
        if listen is not None:
            service = Service.of(recipe, config.site.hostname, direction, budget)
            entry = SMTPEntry(setting, listen, service, conversation, sockets=sockets[setting])
            addresses[key] = await entry.start()
            entries.append(entry)
    return addresses


async def _serve_milter(
    entries: list[Entry], sockets: Sockets, budget: Budget, name: str, direction: Direction, recipe: InPlaceRecipe
) -> dict[str, Address]:
    """The real address, as `outgoing_milter`; none where the direction has no milter, or it is a Unix socket."""
    if direction.milter is None:
        return {}
    setting = f"{name}.milter"
    entry = MilterEntry(setting, direction.milter, recipe, direction, budget, sockets[setting])
    address = await entry.start()
    entries.append(entry)
    return {f"{name}_milter": address} if isinstance(address, Address) else {}


def _submission(config: Config) -> Submission | None:
    """What the submission server checks users with. Raises ConfigError where a file of it cannot be used."""
    table = config.submission
    if table is None:
        return None
    users = UserFile(table.users) if table.users else None
    back_end: BackEnd
    if table.dovecot_auth:
        back_end = DovecotBackEnd(table.dovecot_auth, config.site.domains, users)
    else:
        assert users is not None  # noqa: S101 - one of the two is set: load_config has looked
        back_end = FileBackEnd(users)
    key = SiteSecret.load(config.store.secret).derived(b"rates")[0]
    logins = Logins(back_end, table.failed_logins, table.failed_login_delay, key)
    return Submission(table, logins, ServerTLS(table.certificate, table.key), Rates(table, key))


async def _serve_submission(
    entries: list[Entry],
    sockets: Sockets,
    config: Config,
    budget: Budget,
    submission: Submission,
    outgoing: Outgoing,
) -> dict[str, Address]:
    """The real addresses, as `submission` and `submission_tls`, of those that are set; limits count for both."""
    table = submission.settings
    recipe = Completion(outgoing, submission.logins.back_end, config.site.hostname, check_from=table.check_from)
    service = Service.of(recipe, config.site.hostname, table, budget)
    wanted = (
        ("submission", "listen", table.listen, None),
        ("submission_tls", "listen_tls", table.listen_tls, submission.tls),
    )
    addresses: dict[str, Address] = {}
    for key, setting, listen, tls in wanted:
        if listen is not None:
            name = f"submission.{setting}"
            entry = SMTPEntry(name, listen, service, submission.conversation, tls, sockets[name])
            addresses[key] = await entry.start()
            entries.append(entry)
    return addresses


def _reload(built: Parts, submission: Submission | None) -> None:
    """SIGHUP: reads again what may change while the relay serves; whatever is broken stays as it was."""
    built.policies.reload()
    built.keys.renew_certificates(anyway=True)
    if submission:
        submission.tls.reload()


async def _stopped(entries: list[Entry]) -> None:
    """All at once, so that they share the time that mails in flight are given."""
    await asyncio.gather(*(entry.stop() for entry in entries))


def _shadow(config: Config, built: Parts) -> Shadow | None:
    """Where policies are only tried out: what tells what would happen."""
    if not config.policies.shadow:
        return None
    log.warning("shadow_mode", meaning="every outgoing mail leaves as it came, unsealed")
    record = config.policies.shadow_record
    return Shadow(built.sealer, ShadowRecord(record) if record is not None else None)


def _next_hops(stack: AsyncExitStack, config: Config) -> dict[str, NextHop]:
    """The next hop of each direction; whoever uses it shares its connections."""
    directions = {"outgoing": config.outgoing, "incoming": config.incoming}
    hops = {name: NextHop(each, config.site.hostname) for name, each in directions.items() if each is not None}
    for hop in hops.values():
        stack.push_async_callback(hop.close)
    return hops


def _triage(config: Config, store: Store, next_hops: dict[str, NextHop]) -> Triage:
    """What decides about arriving mail that cannot be opened."""
    metrics = QuarantineMetrics()
    metrics.limit.set(config.quarantine.max_size)
    notices = None
    if config.incoming is not None and config.quarantine.notice:
        notices = Notices(config.site, next_hops["incoming"], metrics)
    return Triage(config, store, metrics, notices)


async def _sweep(store: Store, triage: Triage) -> None:
    while True:
        await asyncio.sleep(SWEEP_S)
        try:
            await store.beat.go_on()
            await store.claims.end_claims()
            if destroyed := await store.received.destroy_expired(store.beat.past):
                log.info("received_keys_destroyed", number=destroyed)
            if forgotten := await store.journal.expire(store.beat.past):
                log.warning("deliveries_given_up", recipients=forgotten, cause="nobody tried them again")
            await store.openings.expire(store.beat.past)
            await store.issued_keys.expire(store.beat.past)
            await store.spent.expire()
            await triage.refresh()
        except Exception as error:  # noqa: BLE001 - keys must be destroyed, whatever stands in the way this time
            log.error("sweep_failed", cause=f"{type(error).__name__}: {error}")


async def _write_what_is_late(store: Store, sent: Sent) -> None:
    """Who has a mail is with this process alone until it is written; until then his mail is tried by nobody."""
    while True:
        await asyncio.sleep(claims.RENEW_S)
        try:
            sent.tidy()
            await store.go_on()
        except Exception as error:  # noqa: BLE001 - the next try may succeed
            log.error("deliveries_not_remembered_yet", cause=f"{type(error).__name__}: {error}")


async def _write_down_keys(built: Parts, secret_id: str) -> None:
    """For `keys` and `check`, which are other processes: what is known here, every few seconds."""
    while True:
        await _write_down(built, secret_id)
        await asyncio.sleep(WRITE_DOWN_S)


async def _write_down(built: Parts, secret_id: str) -> None:
    path = keys_file(built.config)
    try:
        report = (await built.keys.report(ask=False)).as_json()
        report |= {"site_secret": secret_id, "key_receiver_ended": built.receiving.process_has_ended}
        write_whole(path, json.dumps(report))
    except Exception as error:  # noqa: BLE001 - the next one may succeed
        log.warning("key_report_not_written", file=str(path), cause=f"{type(error).__name__}: {error}")


async def _stop_without_receiver(built: Parts, secret_id: str, stop: Stop) -> None:
    """A kill of this process would cost keys from then on; only a new start has the second process again."""
    await built.receiving.process_ended()
    if not stop.told:
        log.error("relay_has_to_start_anew", cause=ALONE)
    stop.tell(ALONE)
    await _write_down(built, secret_id)


def keys_file(config: Config) -> Path:
    """Where the serving relay writes down how its keys stand; it holds no key."""
    return config.store.secret.with_name("keys.json")


def _in_background(stack: AsyncExitStack, name: str, work: Coroutine[Any, Any, None]) -> None:
    """Runs `work` until the stack is closed; should it end by itself, the log says so."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_ended)
    stack.push_async_callback(_cancelled, task)


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("background_work_ended", work=task.get_name(), cause=repr(error), exc_info=error)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def write_whole(path: Path, text: str) -> None:
    """Writes the file so that a reader sees all of it or nothing."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)
