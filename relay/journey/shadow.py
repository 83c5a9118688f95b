"""Shadow mode: plans an outgoing mail, logs the plan, and changes nothing.
No key is taken and no content is stored; a mail that cannot be planned passes too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import structlog

from relay.audit.entries import LedgerEntry
from relay.errors import ConfigError, RelayError
from relay.files import open_regular
from relay.formats import mime
from relay.journey.plan import Group, Outcome, Planned
from relay.journey.sealing import Sealer
from relay.levels import PLAINTEXT
from relay.mail import Mail, Recipient, domain_of
from relay.runtime.aio import off_loop

log = structlog.get_logger(__name__)

MAX_OCTETS = 256 * 1024 * 1024
"""Maximum size of a record, in bytes; then it is renamed to `NAME.1`, which replaces the previous one."""


@dataclass(frozen=True, slots=True)
class Shadow:
    """The parts used; `record` keeps the plans, for `policy simulate --shadow`."""

    sealer: Sealer
    record: ShadowRecord | None = None

    async def foresee(self, mail: Mail) -> tuple[list[LedgerEntry], tuple[Planned, ...]]:
        """The ledger entries, one for all recipients with the same result, and the recipients at our own domains.

        Mail to our own domains stays inside, regardless of policy.
        """
        try:
            plan = await self.sealer.foresee(mail)
        except RelayError as error:
            log.warning("not_foreseen", cause=str(error))
            return [], tuple(Planned(each, None, stays_inside=True) for each in self._own(mail.envelope.recipients))
        outcomes = [each for group in plan for each in group.outcomes(mail.envelope.sender, len(mail.message))]
        for outcome in outcomes:
            # Without addresses, which are not logged.
            log.info("shadow", **{name: said for name, said in asdict(outcome).items() if name not in _ADDRESSES})
        if self.record is not None:
            self.record.add(outcomes)
        entries = await off_loop(
            mime.work(mail.message), lambda: [each for group in plan for each in _entries(mail, group)]
        )
        members = {each.recipient.mailbox: each for group in plan for each in group.members}
        own = [members[each.mailbox] for each in self._own(mail.envelope.recipients)]
        return entries, tuple(replace(each, stays_inside=True) for each in own)

    def _own(self, recipients: Iterable[Recipient]) -> list[Recipient]:
        own = self.sealer.planner().config.site.domains
        return [each for each in recipients if domain_of(each.mailbox) in own]


_ADDRESSES = ("sender", "recipient")


def _entries(mail: Mail, group: Group) -> Iterator[LedgerEntry]:
    alike: dict[str, list[Planned]] = {}
    for each in group.members:
        if each.stays_inside:
            continue
        alike.setdefault(each.policy["policy"], []).append(each)
    result = f"{group.result} {group.protection}".rstrip()
    for members in alike.values():
        yield LedgerEntry.of(
            PLAINTEXT if group.result == "clear" else "shadow",
            mail,
            [each.recipient.address for each in members],
            **members[0].policy,
            level=PLAINTEXT,
            reason=members[0].downgrade if group.result == "clear" else f"shadow mode: it would have been {result}",
        )


class ShadowRecord:
    """The file, one JSON line for each recipient; it proves nothing, so failures hold no mail."""

    def __init__(self, path: Path) -> None:
        """Opens nothing before the first line."""
        self.path = path

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Adds lines; a failure is logged."""
        time = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        lines = "".join(json.dumps({"time": time, **asdict(each)}) + "\n" for each in outcomes)
        try:
            descriptor = open_regular(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            with os.fdopen(descriptor, "a", encoding="ascii") as file:
                file.write(lines)
                full = file.tell() > MAX_OCTETS
            if full:
                self.path.replace(self.path.with_name(f"{self.path.name}.1"))
        except OSError as error:
            log.error("shadow_record_not_written", file=str(self.path), cause=error.strerror)


def read_shadow(path: Path) -> Iterator[tuple[str, Outcome]]:
    """The complete lines of a record with their times, oldest first. Raises ConfigError."""
    names = {each.name for each in fields(Outcome)}
    try:
        with open(path, encoding="ascii", errors="replace", opener=open_regular) as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict) and entry.keys() >= names | {"time"}:
                    yield entry["time"], Outcome(**{name: entry[name] for name in names})
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
