"""Notifies administrators of alarms, as set in [alarms]: by mail, or by running a program.
Notices name only alarms, peers and KMEs; sending blocks nothing, is bounded in time and number, and never raises.

Mail to our own domains goes straight to the next hop of incoming mail, where no policy, key or store can hold it. If
that fails, and for all other addresses, it is outgoing mail under policy. If both next hops are one mail server, the
port that takes back sealed mail hands nothing to the relay again. While the relay is not ready, mail to our own domains
goes there as well: the usual route may depend on the relay itself.
Each address, and the program, gets each notice once, independently of the others. The next mail repeats notices that
could not be sent. Pending notices survive a restart: alarms.py writes them to its file (`pending`), and reads them back
(`resume`).

A critical alarm that begins is mailed within a minute, whatever was mailed just before. If the same alarm begins again
within MAIL_EVERY_S, it waits for the next mail, so that a flapping alarm does not send many.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email import policy
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from typing import Any

import structlog

from relay.config import Config, Server, TCPAddress
from relay.counting import metrics
from relay.counting.alarms import ALARMS
from relay.counting.board import Board
from relay.errors import NextHopUnavailable, PolicyHolds
from relay.files.rights import why_not_as_root
from relay.forward import NextHop
from relay.mail import OURS, Envelope, Mail, Outcomes, Recipient, WayOut, domain_of
from relay.runtime.notify import without_manager
from relay.status.active_alarms import ActiveAlarm, State, public_cause

log = structlog.get_logger(__name__)

MAIL_EVERY_S = 300.0
"""Minimum interval between mails to one address, in seconds, if no notice is urgent."""
URGENT_EVERY_S = 15.0
"""Minimum interval for urgent notices, and before the first retry; it doubles for each retry up to MAIL_EVERY_S."""
MAX_LINE = 998
"""Maximum length of a line of a mail, in octets (RFC 5322, 2.1.1)."""
COMMAND_S = 30.0
MAIL_S = 20.0
"""Timeout of one route of a mail, in seconds; two routes and URGENT_EVERY_S fit into a minute."""
MOST = 100
"""Maximum backlog of notices; the oldest are dropped, warnings first."""
Way = Callable[[Mail], Awaitable[Outcomes]]
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
        # Policy may let this mail leave in clear.
        return f"{begun}Cause: {public_cause(self.name, self.cause)}\n{self.meaning}\nWhat to do: {self.what_to_do}\n"


class _NoticeQueue:
    """The pending notices of one address, or of the program."""

    def __init__(self) -> None:
        self.words: deque[_Notice] = deque()
        self._not_empty = asyncio.Event()
        self._urgent = asyncio.Event()
        self._urged: dict[tuple[str, str], float] = {}

    def add(self, word: _Notice) -> None:
        if len(self.words) >= MOST:
            self.words.remove(next((each for each in self.words if not each.critical), self.words[0]))
        self.words.append(word)
        self._not_empty.set()
        if word.critical and word.state == "begins" and self._is_new(word):
            self._urgent.set()

    def _is_new(self, word: _Notice) -> bool:
        """Whether this alarm did not begin within the last MAIL_EVERY_S."""
        now = time.monotonic()
        self._urged = {key: at for key, at in self._urged.items() if now - at < MAIL_EVERY_S}
        return self._urged.setdefault((word.name, word.about), now) == now

    async def pause(self, least: float, most: float) -> None:
        """Waits between `least` and `most` seconds, ended by an urgent notice since the last `wait`."""
        await asyncio.sleep(least)
        with suppress(TimeoutError):
            async with asyncio.timeout(most - least):
                await self._urgent.wait()

    async def wait(self) -> list[_Notice]:
        """All pending notices, critical ones first, once there is at least one."""
        while not self.words:
            self._not_empty.clear()
            await self._not_empty.wait()
        self._urgent.clear()
        return sorted(self.words, key=lambda each: not each.critical)

    def discard(self, words: Sequence[_Notice]) -> None:
        for each in words:
            with suppress(ValueError):  # dropped, because the queue was full
                self.words.remove(each)


async def _sent(mail: Mail, way: Way) -> None:
    """Returns once the mail is accepted. Raises RelayError and TimeoutError."""
    async with asyncio.timeout(MAIL_S):
        [outcome] = await way(mail)
    if outcome is not None:
        raise outcome


def _one_server(config: Config) -> bool:
    """Whether both directions have one mail server as next hop, as beside a Postfix."""
    hops = [each.next_hop[0] for each in (config.outgoing, config.incoming) if each is not None]
    hosts = [each.address.host for each in hops if isinstance(each, Server) and isinstance(each.address, TCPAddress)]
    return len(hosts) == 2 and hosts[0] == hosts[1]


def _headline(words: Sequence[_Notice]) -> str:
    """The first alarm that begins, and the number of others."""
    begin = [word for word in words if word.state == "begins"]
    if not begin:
        return "alarms"
    more = f" (and {len(begin) - 1} more)" if len(begin) > 1 else ""
    return f"{ALARMS[begin[0].name].line(begin[0].about)}{more}"


class AlarmNotifier:
    """The queue of notices, and their sending."""

    def __init__(
        self,
        config: Config,
        board: Board,
        way_out: WayOut | None,
        next_hops: Mapping[str, NextHop],
        not_ready: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """Mail leaves through the next hop of incoming mail, for our own domains only, and through `way_out`.

        `not_ready` returns why the relay holds all mail, empty if it does not.
        """
        self._settings = config.alarms
        self._site = config.site
        self._board = board
        self._way_out = way_out
        self._inwards = next_hops.get("incoming")
        self._past_us = next_hops.get("outgoing") if _one_server(config) else None
        self._not_ready = not_ready
        self._mails = {address: _NoticeQueue() for address in config.alarms.mail_to or ()}
        self._runs = {_COMMAND: _NoticeQueue()} if config.alarms.command else {}

    def notify(self, active: ActiveAlarm, state: State) -> None:
        """Queues a notice for each receiver."""
        alarm = active.alarm
        word = _Notice(state, alarm.name, active.about, active.cause, active.since, alarm.meaning, alarm.what_to_do)
        for each in (*self._mails.values(), *self._runs.values()):
            each.add(word)

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
        failures = 0
        while True:
            words = await queue.wait()
            if await self._mail(address, words):
                queue.discard(words)
                failures, pause = 0, MAIL_EVERY_S
            else:
                failures, pause = failures + 1, min(MAIL_EVERY_S, URGENT_EVERY_S * 2 ** min(failures, 10))
            await queue.pause(min(URGENT_EVERY_S, pause), pause)

    async def _keep_running(self, queue: _NoticeQueue) -> None:
        while True:
            [word, *_] = await queue.wait()
            await self._run(word)
            queue.discard([word])

    async def _mail(self, address: str, words: Sequence[_Notice]) -> bool:
        """Sends the notices; returns whether the mail was accepted."""
        try:
            mail = self._written(address, words)
            if not await self._went_past_us(address, mail):
                await self._send(mail, self._ways(address))
        except Exception as error:  # noqa: BLE001 - the next mail repeats these notices
            self._board.add(metrics.ALARM_NOTICES, "mail", "failed")
            cause = f"{type(error).__name__}: {error}"
            log.warning("alarm_mail_not_sent", to=address, alarms=len(words), cause=cause)
            return False
        self._board.add(metrics.ALARM_NOTICES, "mail", "sent")
        return True

    def _ways(self, address: str) -> list[Way]:
        """The routes to this address, best first. Raises RelayError if there is none."""
        inside = domain_of(address) in self._site.domains
        ways: list[Way] = [self._deliver_inside] if inside and self._inwards is not None else []
        ways += [self._way_out.process] if self._way_out is not None else []
        if not ways and inside:
            raise NextHopUnavailable("neither [outgoing] nor [incoming] is set")
        if not ways:
            raise PolicyHolds("without [outgoing] no policy is known: only our own domains are told")
        return ways

    async def _went_past_us(self, address: str, mail: Mail) -> bool:
        """Whether the relay holds all mail, and the mail server accepted this mail at a port without the relay."""
        if self._past_us is None or domain_of(address) not in self._site.domains or not self._not_ready():
            return False
        hop = self._past_us

        async def past_us(each: Mail) -> Outcomes:
            return (await hop.deliver(each)).outcomes

        with suppress(Exception):
            await _sent(mail, past_us)
            # Aliases of the mail server may need the usual route, so the mail is sent there too.
            with suppress(Exception):
                await _sent(mail, self._deliver_inside)
            return True
        return False

    async def _deliver_inside(self, mail: Mail) -> Outcomes:
        assert self._inwards is not None  # noqa: S101 - `_ways` has looked
        return (await self._inwards.deliver(mail)).outcomes

    @staticmethod
    async def _send(mail: Mail, ways: Sequence[Way]) -> None:
        """Sends the mail by the first route that works. Raises RelayError and TimeoutError of the last one."""
        for way in ways[:-1]:
            try:
                await _sent(mail, way)
            except Exception:  # noqa: BLE001, S112 - the next way may be open
                continue
            return
        await _sent(mail, ways[-1])

    def _written(self, address: str, words: Sequence[_Notice]) -> Mail:
        from_ = f"postmaster@{self._site.domains[0]}"
        message = EmailMessage(policy=policy.SMTPUTF8 if not address.isascii() else policy.SMTP)
        message["From"] = from_
        message["To"] = address
        message["Subject"] = f"QuMail Relay at {self._site.name}: {_headline(words)}"
        message["Date"] = format_datetime(datetime.now(UTC))
        message["Message-ID"] = make_msgid(domain=self._site.hostname)
        message["Auto-Submitted"] = "auto-generated"
        text = "\n".join(word.as_text() for word in words)
        # Commands in it may be pasted from the file of a mailbox, where quoted-printable would break them.
        plain = text.isascii() and max(map(len, text.split("\n"))) <= MAX_LINE
        message.set_content(text, cte="7bit" if plain else "quoted-printable")
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
            # Kills its children too, which would keep its standard input open.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        return f"exit status {process.returncode}" if process.returncode else ""
