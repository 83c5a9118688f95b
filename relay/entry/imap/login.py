"""Logs in to an account, with a password from a file or systemd or a token from a command, and rate-limited.
Standard: RFC 4616 (SASL PLAIN), XOAUTH2 as documented by its providers; RFC 5530 response codes distinguish a refused
password from an outage.

The folders of an account log in one at a time. After a failure all wait: exponential backoff with jitter. A provider
that counts failed logins would lock the account. So a refused password is not tried again until it has changed, or an
hour has passed.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog

from relay.config import IMAPSettings
from relay.entry.imap.condition import Condition, Why
from relay.entry.imap.session import Credential, LoginRefused, Session, connected
from relay.errors import ConfigError, MailboxUnavailable
from relay.files.rights import why_not_as_root
from relay.store.secret_file import read

log = structlog.get_logger(__name__)

FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 300.0
"""Maximum pause between two connection attempts, in seconds; half of it is jitter."""
REFUSED_S = 3600.0
LOOK_S = 60.0
"""Poll interval for a changed password or token, in seconds."""
TOKEN_TIMEOUT_S = 30.0
MAX_SECRET_OCTETS = 16 * 1024


def pause_after(failures: int) -> float:
    """Seconds to wait after this number of consecutive failures (at least 1)."""
    longest: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures - 1, 30))
    return longest * random.uniform(0.5, 1)  # noqa: S311


class MailboxAccess:
    """Logs in to one account."""

    def __init__(self, account: IMAPSettings, condition: Condition) -> None:
        self._account = account
        self._condition = condition
        self._turn = asyncio.Lock()
        self._failures = 0
        self._due = 0.0
        self._refused: Credential | None = None

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A logged-in session, retried until it succeeds. Raises MailboxUnavailable if it breaks later."""
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
                self._condition.fails("", "login", str(error))
                log.error("imap_login_refused", cause=str(error), again_in_s=REFUSED_S, sooner=cause)
            except MailboxUnavailable as error:
                self._failed("connection", str(error))
            except ConfigError as error:
                self._failed("settings", str(error))
            except Exception as error:  # the next connection may succeed
                log.error("imap_failed", exc_info=error)
                self._failed("error", type(error).__name__)
            else:
                self._failures, self._refused = 0, None
                self._condition.works()
                return session

    async def _when_due(self) -> Credential:
        """The credential, once the next login is due. Raises ConfigError."""
        while (left := self._due - self._now()) > 0:
            await self._sleep(min(left, LOOK_S))
            if self._refused is not None and await self._is_another(self._refused):
                # A token may change each time; that must not cause a login a minute.
                self._due = min(self._due, self._now() + pause_after(self._failures))
                self._refused = None
        return await credential(self._account)

    async def _is_another(self, refused: Credential) -> bool:
        try:
            return await credential(self._account) != refused
        except ConfigError:
            return False

    def _failed(self, why: Why, cause: str) -> None:
        self._failures += 1
        self._condition.fails("", why, cause)
        pause = pause_after(self._failures)
        self._due = self._now() + pause
        log.warning("imap_unavailable", cause=cause, again_in_s=round(pause, 1))

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


async def credential(account: IMAPSettings) -> Credential:
    """The current credential of an account. Raises ConfigError, without any secret in its text."""
    if account.token_command:
        return Credential(account.user, _checked(await _said(account.token_command), "token_command"), "XOAUTH2")
    path = account.password_file or _systemd_credential(account.password_credential)
    content = await asyncio.to_thread(read, path)
    return Credential(account.user, _checked(content, str(path)), "PLAIN")


def _systemd_credential(name: str) -> Path:
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise ConfigError(
            f"password_credential: systemd has given no credentials; put LoadCredential={name}:/path into the unit"
        )
    return Path(directory) / name


def _checked(content: bytes, source: str) -> str:
    """The secret without a final line end. Raises ConfigError."""
    content = content.removesuffix(b"\n").removesuffix(b"\r")
    try:
        secret = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: the secret is not UTF-8") from error
    if not secret or len(content) > MAX_SECRET_OCTETS or not secret.isprintable():
        raise ConfigError(f"{source}: the secret is empty, too long, or has control characters")
    return secret


async def _said(command: tuple[str, ...]) -> bytes:
    """The standard output of a command, run without a shell. Raises ConfigError."""
    name = command[0]
    if cause := why_not_as_root(name):
        raise ConfigError(f"token_command: {cause}")
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # may have secrets
            start_new_session=True,  # without access to the user's terminal
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"token_command: {name} cannot be started: {type(error).__name__}") from error
    assert process.stdout is not None  # noqa: S101 - it was asked for
    try:
        async with asyncio.timeout(TOKEN_TIMEOUT_S):
            output = await process.stdout.read(MAX_SECRET_OCTETS + 2)
            while piece := await process.stdout.read(MAX_SECRET_OCTETS):
                output = (output + piece)[: MAX_SECRET_OCTETS + 2]
            status = await process.wait()
    except TimeoutError as error:
        raise ConfigError(f"token_command: {name} has not ended within {TOKEN_TIMEOUT_S:.0f} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if status:
        raise ConfigError(f"token_command: {name} ended with status {status}")
    return output
