"""Background work of a serving relay: expiry, late writes, reports about keys.

Failures are logged and retried; only the end of the relay ends it.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import structlog

from relay.audit.recovery import take_over_announced
from relay.audit.upkeep import compress_finished, remove_old
from relay.audit.writing import ANNOUNCED, Audit
from relay.config import Config
from relay.counting import metrics
from relay.counting.held import HeldMail
from relay.errors import StoreUnavailable
from relay.files import write_whole
from relay.files.stamps import read_json
from relay.key_receiver import Receiving
from relay.keys.ring import KeyRing
from relay.policy.findings import endings
from relay.policy.reload import PoliciesInForce
from relay.process.worker import Worker
from relay.quarantine.triage import Triage
from relay.runtime import heap, release
from relay.runtime.aio import in_background
from relay.runtime.release import Release
from relay.runtime.stopping import Stop
from relay.store import claims
from relay.store.sent import SENT, SentRecords, sent_of_late, take_over_sent
from relay.store.store import Store

log = structlog.get_logger(__name__)

SWEEP_S = 60.0
"""Interval at which expired received keys are destroyed, in seconds."""
GIVE_BACK_S = 30.0
"""Interval at which free memory is returned to the system, in seconds."""
ALONE_S, LOOK_S = 5.0, 0.01
"""Maximum wait for another worker that takes over records, and poll interval, in seconds."""
DAY_S = 86_400.0
MAX_ENDINGS = 20
"""Maximum number of expiring files and rules logged at once."""
WRITE_DOWN_S = 10.0
"""Interval at which the key report is written, in seconds, and maximum interval for held mail."""
HELD_OCTETS_PER_S = 100_000
"""Size of the file of held mail for which a second is waited: some 2,000 recipients."""
ALONE = "the second process, which asks KMEs for received keys, has ended: the relay is to be started anew, with both"
"""Cause logged when the relay has to stop by itself."""


async def take_over_what_was_sent(config: Config, store: Store, audit: Audit) -> None:
    """Stores what a killed relay had sent, before a retry comes. Raises StoreUnavailable.

    Before that, mail that was leaving gets its audit record, while the names of who has it are known. Workers do this
    one after the other, so that it is finished when any of them returns.
    """
    directory = config.state_directory / SENT

    async def sent(names: Collection[str]) -> Collection[str]:
        late = await asyncio.to_thread(sent_of_late, directory)
        # If the audit record could not be written earlier, the store has already taken over what was sent.
        return late | {name.hex() for name in await store.deliveries.who_have_it(list(map(bytes.fromhex, names)))}

    async with _alone(directory):
        await _complete_audit(config, audit, sent)
        number = await take_over_sent(directory, store.deliveries)
    if number:
        log.warning("relay_was_killed", mails_sent_shortly_before=number)


async def _complete_audit(
    config: Config, audit: Audit, sent: Callable[[Collection[str]], Awaitable[Collection[str]]]
) -> None:
    """Completes the audit record; failures are logged and block nothing else."""
    try:
        await take_over_announced(config.state_directory / ANNOUNCED, audit, sent)
    except Exception as error:  # noqa: BLE001 - mail does not wait for it
        log.error("audit_not_completed", cause=str(error), instead="tried again in a minute")


@asynccontextmanager
async def _alone(directory: Path) -> AsyncIterator[None]:
    """Locks the directory for taking over. Raises StoreUnavailable after ALONE_S."""
    descriptor = await asyncio.to_thread(_opened, directory)
    until = asyncio.get_running_loop().time() + ALONE_S
    try:
        while not _locked(descriptor):
            if asyncio.get_running_loop().time() > until:
                raise StoreUnavailable(f"{directory}: another worker takes over from it, and does not end")
            await asyncio.sleep(LOOK_S)
        yield
    finally:
        os.close(descriptor)


def _opened(directory: Path) -> int:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    except OSError as error:
        raise StoreUnavailable(
            f"{directory}: {error.strerror}; it has to be a directory of the relay's user"
        ) from error


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def end_what_the_dead_had(config: Config, store: Store, audit: Audit) -> None:
    """Takes over what killed processes had sent, then ends their claims. Raises StoreUnavailable.

    In the other order, another worker could claim, and send again, mail that is not yet known to have been sent.
    The same holds for claims of a process that ends meanwhile.
    """
    dead = await store.claims.dead_processes()
    await take_over_what_was_sent(config, store, audit)
    await store.claims.end_claims(dead)


async def sweep(config: Config, store: Store, triage: Triage, audit: Audit) -> None:
    """Expires old rows and keys, every SWEEP_S seconds."""
    while True:
        await asyncio.sleep(SWEEP_S)
        try:
            await store.restore_check.go_on()
            await end_what_the_dead_had(config, store, audit)
            if destroyed := await store.received.destroy_expired(store.restore_check.past):
                log.info("received_keys_destroyed", number=destroyed)
            if forgotten := await store.deliveries.expire(store.restore_check.past):
                log.warning("deliveries_given_up", recipients=forgotten, cause="nobody tried them again")
            await store.issued_keys.expire(store.restore_check.past)
            await store.rate_limits.expire()
            await triage.refresh()
            await compress_finished(audit.directory)
            await remove_old(audit, config.audit.keep_days, config.audit.max_size, store.restore_check.past)
        except Exception as error:  # noqa: BLE001 - the next run must still destroy keys
            log.error("sweep_failed", cause=f"{type(error).__name__}: {error}")


async def give_memory_back() -> None:
    """Returns free memory to the system, every GIVE_BACK_S seconds."""
    while True:
        await asyncio.sleep(GIVE_BACK_S)
        await asyncio.to_thread(heap.give_back)


async def write_what_is_late(store: Store, sent: SentRecords) -> None:
    """Writes late records of who has a mail: until then no other process may deliver it."""
    while True:
        await asyncio.sleep(claims.RENEW_S)
        try:
            sent.tidy()
            await store.deliveries.go_on()
        except Exception as error:  # noqa: BLE001 - the next attempt may succeed
            log.error("deliveries_not_remembered_yet", cause=f"{type(error).__name__}: {error}")


async def warn_of_endings(policies: PoliciesInForce) -> None:
    """Logs once a day which policy files and rules expire soon."""
    while True:
        try:
            expiring = await asyncio.to_thread(lambda: [str(each) for each in endings(policies())])
            policies.board.set(metrics.POLICY_ENDS, to=len(expiring))
            for cause in expiring[:MAX_ENDINGS]:
                log.warning("policy_ends", cause=cause, number=len(expiring))
        except Exception as error:  # noqa: BLE001 - retried tomorrow
            log.error("policy_ends_not_told", cause=f"{type(error).__name__}: {error}")
        await asyncio.sleep(DAY_S)


@dataclass(frozen=True, slots=True)
class KeysFile:
    """The key report, for `keys` and `check`, which are other processes; it has no key material.

    A worker sends its report to the supervisor, which writes those of all workers.
    """

    path: Path
    secret_id: str
    keys: KeyRing
    receiving: Receiving
    worker: Worker | None = None
    runs: Release = field(default_factory=release.installed)

    async def keep_up(self) -> None:
        """Writes it every WRITE_DOWN_S seconds."""
        while True:
            await self.write()
            await asyncio.sleep(WRITE_DOWN_S)

    async def write(self) -> None:
        """Writes it once; a failure is logged."""
        try:
            report = (await self.keys.report(ask=False)).as_json()
            report |= {"site_secret": self.secret_id, "key_receiver_ended": self.receiving.process_has_ended}
            report["release"] = self.runs._asdict()
            if self.worker is not None:
                self.worker.send("keys", report)
                if dropping := self.keys.drop_undelivered:
                    self.worker.send("alone", dropping)
            else:
                write_whole(self.path, json.dumps(report))
        except Exception as error:  # noqa: BLE001 - the next one may succeed
            log.warning("key_report_not_written", file=str(self.path), cause=f"{type(error).__name__}: {error}")

    async def stop_without_receiver(self, stop: Stop) -> None:
        """Stops the relay when the second process has ended: without it, a kill would lose keys."""
        await self.receiving.process_ended()
        if not stop.requested:
            log.error("relay_has_to_start_anew", cause=ALONE)
        stop.request(ALONE)
        await self.write()


@asynccontextmanager
async def held_mail_kept(held: HeldMail, file: Path) -> AsyncIterator[None]:
    """Keeps held mail in this file across restarts: reads it now, and writes it until the end.

    Must enclose all mail processing: mail that left outside of it would count as waiting.
    """
    try:
        await asyncio.to_thread(read_json, file, held.take)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        log.warning("held_mail_not_read", file=str(file), cause=f"{type(error).__name__}: {error}")
        held.may_lack_some()
    try:
        async with in_background("held mail", partial(_keep_held_mail, held, file)):
            yield
    finally:
        await _write_held_mail(held, file, "")


async def _keep_held_mail(held: HeldMail, file: Path) -> None:
    written = ""
    while True:
        written = await _write_held_mail(held, file, written)
        # `check` reads it: little is there within a second.
        await asyncio.sleep(min(WRITE_DOWN_S, max(1.0, len(written) / HELD_OCTETS_PER_S)))


async def _write_held_mail(held: HeldMail, file: Path, written: str) -> str:
    """Writes the file if it differs from `written`; returns its content."""
    try:
        text = await held.as_text()
        if text != written:
            await asyncio.to_thread(write_whole, file, text)
    except OSError as error:
        log.warning("held_mail_not_written", file=str(file), cause=str(error))
        return ""
    return text
