"""Logs in to one account for all of its folders: one at a time, and after a failure all of them wait together.
Standard: exponential backoff with jitter above a floor; RFC 5530 response codes tell a refused password from trouble.

A provider that counts failed logins locks the account, so a password that was refused is not tried again before it is
another one, or an hour has passed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from relay.config import IMAPSettings
from relay.entry.imap.credentials import Credential, credential
from relay.entry.imap.session import LoginRefused, Session, connected
from relay.errors import ConfigError, MailboxUnavailable

log = structlog.get_logger(__name__)

FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 300.0
"""Between two tries to connect; half of it is certain, the other half is chance."""
REFUSED_S = 3600.0
LOOK_S = 60.0
"""How often it is looked meanwhile whether the password, or the token, is another one."""


def pause_after(failures: int) -> float:
    """Seconds to wait after so many failures in a row, 1 at least."""
    longest: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures - 1, 30))
    return longest * random.uniform(0.5, 1)  # noqa: S311


class Access:
    """The way into one account."""

    def __init__(self, account: IMAPSettings) -> None:
        self._account = account
        self._turn = asyncio.Lock()
        self._failures = 0
        self._due = 0.0
        self._refused: Credential | None = None

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A session that has logged in, however long that takes. Raises MailboxUnavailable where it breaks later."""
        async with AsyncExitStack() as stack:
            async with self._turn:
                session = await self._logged_in(stack)
            yield session

    async def _logged_in(self, stack: AsyncExitStack) -> Session:
        while True:
            try:
                login = await self._when_due()
                session = await stack.enter_async_context(connected(self._account, login))
            except LoginRefused as error:
                self._failures += 1
                self._refused = login
                self._due = self._now() + REFUSED_S
                cause = "or as soon as the password is another one"
                log.error("imap_login_refused", cause=str(error), again_in_s=REFUSED_S, sooner=cause)
            except (MailboxUnavailable, ConfigError) as error:
                self._failed(str(error))
            except Exception as error:  # whatever it is, the next connection may do better
                log.error("imap_failed", exc_info=error)
                self._failed(type(error).__name__)
            else:
                self._failures, self._refused = 0, None
                return session

    async def _when_due(self) -> Credential:
        """What to log in with, once it is time to. Raises ConfigError."""
        while (left := self._due - self._now()) > 0:
            await self._sleep(min(left, LOOK_S))
            if self._refused is not None and await self._is_another(self._refused):
                # A token may be another one each time, which must not make it a guess a minute.
                self._due = min(self._due, self._now() + pause_after(self._failures))
                self._refused = None
        return await credential(self._account)

    async def _is_another(self, refused: Credential) -> bool:
        try:
            return await credential(self._account) != refused
        except ConfigError:
            return False

    def _failed(self, cause: str) -> None:
        self._failures += 1
        pause = pause_after(self._failures)
        self._due = self._now() + pause
        log.warning("imap_unavailable", cause=cause, again_in_s=round(pause, 1))

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
