"""How the relay proves to an IMAP server who it is: a password from a file or systemd, a token from a command.
Standard: RFC 4616 (SASL PLAIN), XOAUTH2 as its providers document it; secrets are read anew for each login.
"""

from __future__ import annotations

import asyncio
import base64
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from relay.config import IMAPSettings
from relay.errors import ConfigError
from relay.store.secret_file import read

TOKEN_TIMEOUT_S = 30.0
MAX_SECRET_OCTETS = 16 * 1024


@dataclass(frozen=True, slots=True)
class Credential:
    """What to log in with; never logged."""

    user: str
    secret: str = field(repr=False)
    mechanism: Literal["PLAIN", "XOAUTH2"]

    @property
    def initial_response(self) -> bytes:
        """The mechanism's only message, in base64."""
        if self.mechanism == "XOAUTH2":
            text = f"user={self.user}\1auth=Bearer {self.secret}\1\1"
        else:
            text = f"\0{self.user}\0{self.secret}"
        return base64.b64encode(text.encode())


async def credential(account: IMAPSettings) -> Credential:
    """The credential of an account as it is now. Raises ConfigError, in which no secret is seen."""
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
    """The secret without the line end that editors add; raises ConfigError."""
    content = content.removesuffix(b"\n").removesuffix(b"\r")
    try:
        secret = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: the secret is not UTF-8") from error
    if not secret or len(content) > MAX_SECRET_OCTETS or not secret.isprintable():
        raise ConfigError(f"{source}: the secret is empty, too long, or has control characters")
    return secret


async def _said(command: tuple[str, ...]) -> bytes:
    """The standard output of a command, which is not given to a shell. Raises ConfigError."""
    name = command[0]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # it may say secrets there
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
