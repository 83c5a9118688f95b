"""Notifies administrators of alarms, as set in [alarms]: by mail, or by running a program.
Standard: it names alarms, peers and KMEs only; it blocks nothing, is bounded in time and number, and never raises.

The mail takes the journey out like any other, under policy. Each address, and the program, gets each notice once,
independently of the others. What could not be mailed goes into the next mail. What is still
pending survives a restart: alarms.py writes it to its file (`pending`), and reads it back (`resume`).
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email import policy
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from typing import Any

import structlog

from relay.config import Config
from relay.counting import metrics
from relay.counting.alarms import ALARMS, Alarm
from relay.counting.board import Board
from relay.errors import NextHopUnavailable, PolicyHolds
from relay.files.rights import why_not_as_root
from relay.forward import NextHop
from relay.mail import OURS, Envelope, Mail, Recipient, WayOut, domain_of
from relay.runtime.notify import without_manager
from relay.status.standing import Standing, State, public_cause

log = structlog.get_logger(__name__)

MAIL_EVERY_S = 300.0
COMMAND_S = 30.0
MAIL_S = 60.0
MOST = 100
"""Maximum backlog of notices; the oldest are dropped, warnings first."""
_COMMAND = "command"
"""Key of the program's notices in the file; all other keys are addresses."""


@dataclass(frozen=True, slots=True)
class _Notice:
    """One notice about one alarm."""

    state: State
    name: str
    about: str
    cause: str
    since: float
    meaning: str
    what_to_do: str

    def as_json(self, site: str) -> dict[str, Any]:
        return {
            "alarm": self.name, "severity": ALARMS[self.name].severity, "state": self.state, "about": self.about,
            "cause": self.cause, "since": self.when, "meaning": self.meaning, "what_to_do": self.what_to_do,
            "site": site,
        }  # fmt: skip

    @property
    def critical(self) -> bool:
        """Whether someone has to act now."""
        return ALARMS[self.name].severity == "critical"

    @property
    def when(self) -> str:
        return datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def as_text(self) -> str:
        about = f" ({self.about})" if self.about else ""
        begun = f"{self.name}{about} {self.state}; since {self.when}\n"
        if self.state == "ends":
            return begun
        # A mail may leave in clear, if policy says so.
        return f"{begun}Cause: {public_cause(self.name, self.cause)}\n{self.meaning}\nWhat to do: {self.what_to_do}\n"


class _NoticeQueue:
    """The notices that wait for one address, or for the program."""

    def __init__(self) -> None:
        self.words: deque[_Notice] = deque()
        self._not_empty = asyncio.Event()

    def add(self, word: _Notice) -> None:
        if len(self.words) >= MOST:
            self.words.remove(next((each for each in self.words if not each.critical), self.words[0]))
        self.words.append(word)
        self._not_empty.set()

    async def wait(self) -> list[_Notice]:
        """All pending notices, as soon as there is at least one."""
        while not self.words:
            self._not_empty.clear()
            await self._not_empty.wait()
        return list(self.words)

    def discard(self, words: Sequence[_Notice]) -> None:
        for each in words:
            with suppress(ValueError):  # dropped meanwhile, because the queue was full
                self.words.remove(each)


def _headline(words: Sequence[_Notice]) -> str:
    """The most severe alarm that begins, and the number of others."""
    begin = sorted((word for word in words if word.state == "begins"), key=lambda each: not each.critical)
    if not begin:
        return "alarms"
    more = f" (and {len(begin) - 1} more)" if len(begin) > 1 else ""
    return f"{ALARMS[begin[0].name].line(begin[0].about)}{more}"


class AlarmNotifier:
    """The queue of notices, and their sending."""

    def __init__(self, config: Config, board: Board, way_out: WayOut | None, next_hops: Mapping[str, NextHop]) -> None:
        """Mail goes through `way_out`; without it, to our own domains through the next hop of incoming mail."""
        self._settings = config.alarms
        self._site = config.site
        self._board = board
        self._way_out = way_out
        self._inwards = next_hops.get("incoming")
        self._mails = {address: _NoticeQueue() for address in config.alarms.mail_to or ()}
        self._runs = {_COMMAND: _NoticeQueue()} if config.alarms.command else {}

    def notify(self, standing: Standing, state: State) -> None:
        """Queues a notice for each receiver."""
        alarm = standing.alarm
        word = _Notice(
            state, alarm.name, standing.about, standing.cause, standing.since, alarm.meaning, alarm.what_to_do
        )
        for each in (*(self._mails.values() if self._may_leave(alarm, standing.about) else ()), *self._runs.values()):
            each.add(word)

    def _may_leave(self, alarm: Alarm, about: str) -> bool:
        """Whether a mail about this alarm can leave despite the fault that the alarm reports."""
        ours = "outgoing" if self._way_out is not None else "incoming"
        return alarm.mailed or (alarm.about == "direction" and about != ours)

    def pending(self) -> dict[str, Any]:
        """The pending notices by receiver, for a file."""
        waiting = {**self._mails, **self._runs}
        return {to: [asdict(word) for word in each.words] for to, each in waiting.items() if each.words}

    def resume(self, pending: Mapping[str, Any]) -> None:
        """Queues what `pending` returned, for receivers still configured. Raises ValueError, KeyError and TypeError."""
        for to, each in {**self._mails, **self._runs}.items():
            for word in (_Notice(**fields) for fields in pending.get(to, ())):
                if word.name in ALARMS:
                    each.add(word)

    async def keep_up(self) -> None:
        """Sends notices until cancelled; no receiver waits for another."""
        async with asyncio.TaskGroup() as group:
            for address, queue in self._mails.items():
                group.create_task(self._keep_mailing(address, queue))
            for queue in self._runs.values():
                group.create_task(self._keep_running(queue))

    async def _keep_mailing(self, address: str, queue: _NoticeQueue) -> None:
        while True:
            words = await queue.wait()
            if await self._mail(address, words):
                queue.discard(words)
            await asyncio.sleep(MAIL_EVERY_S)

    async def _keep_running(self, queue: _NoticeQueue) -> None:
        while True:
            for word in await queue.wait():
                await self._run(word)
                queue.discard([word])

    async def _mail(self, address: str, words: Sequence[_Notice]) -> bool:
        """Whether the mail was accepted."""
        try:
            async with asyncio.timeout(MAIL_S):
                await self._send(address, words)
        except Exception as error:  # noqa: BLE001 - the next mail repeats these notices
            self._board.add(metrics.ALARM_NOTICES, "mail", "failed")
            cause = f"{type(error).__name__}: {error}"
            log.warning("alarm_mail_not_sent", to=address, alarms=len(words), cause=cause)
            return False
        self._board.add(metrics.ALARM_NOTICES, "mail", "sent")
        return True

    async def _send(self, address: str, words: Sequence[_Notice]) -> None:
        """Raises RelayError."""
        mail = self._written(address, words)
        if self._way_out is not None:
            [outcome] = await self._way_out.process(mail)
        elif domain_of(address) not in self._site.domains:
            raise PolicyHolds("without [outgoing] no policy is known: only our own domains are told")
        elif self._inwards is None:
            raise NextHopUnavailable("neither [outgoing] nor [incoming] is set")
        else:
            [outcome] = (await self._inwards.deliver(mail)).outcomes
        if outcome is not None:
            raise outcome

    def _written(self, address: str, words: Sequence[_Notice]) -> Mail:
        from_ = f"postmaster@{self._site.domains[0]}"
        message = EmailMessage(policy=policy.SMTPUTF8 if not address.isascii() else policy.SMTP)
        message["From"] = from_
        message["To"] = address
        message["Subject"] = f"QuMail Relay at {self._site.name}: {_headline(words)}"
        message["Date"] = format_datetime(datetime.now(UTC))
        message["Message-ID"] = make_msgid(domain=self._site.hostname)
        message["Auto-Submitted"] = "auto-generated"
        message.set_content("\n".join(word.as_text() for word in words), cte="quoted-printable")
        envelope = Envelope("", (Recipient(address, notify="NEVER"),), smtputf8=not address.isascii())
        return Mail(envelope, message.as_bytes(), id=secrets.token_hex(6), listener=OURS)

    async def _run(self, word: _Notice) -> None:
        command = self._settings.command or ()
        try:
            status = await self._ran(command, json.dumps(word.as_json(self._site.name)).encode() + b"\n")
        except TimeoutError:
            status = f"not within {COMMAND_S:.0f} s"
        except OSError as error:
            status = str(error)
        outcome = "failed" if status else "sent"
        self._board.add(metrics.ALARM_NOTICES, "command", outcome)
        if status:
            log.warning("alarm_command_failed", command=command[0], alarm=word.name, cause=status)

    async def _ran(self, command: Sequence[str], text: bytes) -> str:
        """The exit status as text, "" for 0. Raises OSError and TimeoutError, after killing the process group."""
        if cause := why_not_as_root(command[0]):
            return cause
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env=without_manager(os.environ),
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(COMMAND_S):
                await process.communicate(text)
        finally:
            # Its children too: they would keep its standard input open.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        return f"exit status {process.returncode}" if process.returncode else ""
