"""What a serving relay does beside mail: ends what has expired, writes what may be late, reports the state of its keys.
Whatever stands in the way is logged, and tried again: only the end of the relay ends any of this.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from relay.audit.recovery import take_over_announced
from relay.audit.upkeep import compress_finished, remove_old
from relay.audit.writing import Audit
from relay.config import Config
from relay.counting import metrics
from relay.counting.held import HeldMail
from relay.errors import StoreUnavailable
from relay.files import write_whole
from relay.files.stamps import read_regular
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
"""Interval at which free memory goes back to the system, in seconds."""
"""Name of the directory of what has left, written at once."""
ANNOUNCED = "audit.pending"
"""Name of the directory of what is about to leave, written at once for the audit record."""
ALONE_S, LOOK_S = 5.0, 0.01
"""Maximum wait for another worker that takes over what was sent, and the poll interval, in seconds."""
DAY_S = 86_400.0
MAX_ENDINGS = 20
"""Maximum number of ending files and rules named in the log at once."""
WRITE_DOWN_S = 10.0
"""Interval at which `keys status` gets new figures, and held mail is written down, in seconds."""
ALONE = "the second process, which asks KMEs for received keys, has ended: the relay is to be started anew, with both"
"""Reason logged when the relay stops without being asked to."""


async def take_over_what_was_sent(config: Config, store: Store, audit: Audit) -> None:
    """What a killed relay had sent goes into the store, before a retry of it comes. Raises StoreUnavailable.

    First the mail that was leaving gets its record, while it is known here by name who has it. Two workers do that one
    after the other: who returned while the other one is at it would take it for done.
    """
    directory = config.state_directory / SENT

    async def sent(names: Collection[str]) -> Collection[str]:
        late = await asyncio.to_thread(sent_of_late, directory)
        # Where the audit record could not be written before, the store has taken over meanwhile what was sent.
        return late | {name.hex() for name in await store.deliveries.who_have_it(list(map(bytes.fromhex, names)))}

    async with _alone(directory):
        await _complete_audit(config, audit, sent)
        number = await take_over_sent(directory, store.deliveries)
    if number:
        log.warning("relay_was_killed", mails_sent_shortly_before=number)


async def _complete_audit(
    config: Config, audit: Audit, sent: Callable[[Collection[str]], Awaitable[Collection[str]]]
) -> None:
    """Any failure is logged, and blocks nothing else."""
    try:
        await take_over_announced(config.state_directory / ANNOUNCED, audit, sent)
    except Exception as error:  # noqa: BLE001 - mail does not wait for it
        log.error("audit_not_completed", cause=str(error), instead="tried again in a minute")


@asynccontextmanager
async def _alone(directory: Path) -> AsyncIterator[None]:
    """No other process takes over from this directory. Raises StoreUnavailable where one does for too long."""
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

    In the other order another worker could claim, and send again, what is not known to have been sent yet. So could it
    with the claims of one that ends meanwhile.
    """
    dead = await store.claims.dead_processes()
    await take_over_what_was_sent(config, store, audit)
    await store.claims.end_claims(dead)


async def sweep(config: Config, store: Store, triage: Triage, audit: Audit) -> None:
    """Ends what has expired, every SWEEP_S seconds."""
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
        except Exception as error:  # noqa: BLE001 - keys must be destroyed, whatever stands in the way this time
            log.error("sweep_failed", cause=f"{type(error).__name__}: {error}")


async def give_memory_back() -> None:
    """What large messages have left free, every GIVE_BACK_S seconds."""
    while True:
        await asyncio.sleep(GIVE_BACK_S)
        await asyncio.to_thread(heap.give_back)


async def write_what_is_late(store: Store, sent: SentRecords) -> None:
    """Writes down who has a mail, which only this process knows: until then nobody else may try it."""
    while True:
        await asyncio.sleep(claims.RENEW_S)
        try:
            sent.tidy()
            await store.deliveries.go_on()
        except Exception as error:  # noqa: BLE001 - the next attempt may succeed
            log.error("deliveries_not_remembered_yet", cause=f"{type(error).__name__}: {error}")


async def tell_of_endings(policies: PoliciesInForce) -> None:
    """Once a day: which files and rules of the policies end soon."""
    while True:
        try:
            expiring = await asyncio.to_thread(lambda: [str(each) for each in endings(policies())])
            policies.board.set(metrics.POLICY_ENDS, to=len(expiring))
            for cause in expiring[:MAX_ENDINGS]:
                log.warning("policy_ends", cause=cause, number=len(expiring))
        except Exception as error:  # noqa: BLE001 - what ends is to be reported tomorrow, whatever fails today
            log.error("policy_ends_not_told", cause=f"{type(error).__name__}: {error}")
        await asyncio.sleep(DAY_S)


@dataclass(frozen=True, slots=True)
class KeysFile:
    """What is known here of the keys, for `keys` and `check`, which are other processes; it holds no key.

    A worker's goes by way of the process that starts workers, which has those of all.
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
        """Writes it once, or says in the log why that cannot be."""
        try:
            report = (await self.keys.report(ask=False)).as_json()
            report |= {"site_secret": self.secret_id, "key_receiver_ended": self.receiving.process_has_ended}
            report["release"] = self.runs._asdict()
            if self.worker is not None:
                self.worker.say("keys", report)
                if dropping := self.keys.drop_undelivered:
                    self.worker.say("alone", dropping)
            else:
                write_whole(self.path, json.dumps(report))
        except Exception as error:  # noqa: BLE001 - the next one may succeed
            log.warning("key_report_not_written", file=str(self.path), cause=f"{type(error).__name__}: {error}")

    async def stop_without_receiver(self, stop: Stop) -> None:
        """A kill of this process would cost keys from then on; only a new start has the second process again."""
        await self.receiving.process_ended()
        if not stop.requested:
            log.error("relay_has_to_start_anew", cause=ALONE)
        stop.request(ALONE)
        await self.write()


@asynccontextmanager
async def held_mail_kept(held: HeldMail, file: Path) -> AsyncIterator[None]:
    """Whose mail waits is known to the relay that starts next as well: in this file, read now and written till the end.

    To be entered before any mail comes, and left when the last has ended. What left meanwhile would count as waiting.
    """
    try:
        held.take((await asyncio.to_thread(read_regular, file)).decode())
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("held_mail_not_read", file=str(file), cause=f"{type(error).__name__}: {error}")
    try:
        async with in_background("held mail", _keep_held_mail(held, file)):
            yield
    finally:
        await _write_held_mail(held, file, "")


async def _keep_held_mail(held: HeldMail, file: Path) -> None:
    written = ""
    while True:
        written = await _write_held_mail(held, file, written)
        await asyncio.sleep(WRITE_DOWN_S)


async def _write_held_mail(held: HeldMail, file: Path, written: str) -> str:
    """What stands in the file now, where `written` did."""
    try:
        text = await held.as_text()
        if text != written:
            await asyncio.to_thread(write_whole, file, text)
    except OSError as error:
        log.warning("held_mail_not_written", file=str(file), cause=str(error))
        return ""
    return text
