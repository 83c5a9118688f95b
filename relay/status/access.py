"""Access control: everybody who can connect, or only clients with the token.
Standard: RFC 6750 2.1 (Bearer), RFC 7617 (Basic, its password is the token); compared in constant time.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
from collections.abc import Callable
from pathlib import Path

import structlog
from aiohttp import web

from relay.errors import ConfigError
from relay.files.stamps import Stamps, stamps_of
from relay.store import secret_file

log = structlog.get_logger(__name__)

LEAST_LENGTH = 32
"""Minimum length of a token, in characters, against guessing."""
_ASK = {"WWW-Authenticate": 'Basic realm="QuMail Relay", charset="UTF-8"'}


def read_token(path: Path) -> bytes:
    """The token in a file that only the relay may read. Raises ConfigError."""
    token = secret_file.read(path).strip()
    if len(token) < LEAST_LENGTH or not token.isascii() or not token.decode().isprintable() or b" " in token:
        raise ConfigError(f"{path}: at least {LEAST_LENGTH} characters without spaces, as of: openssl rand -hex 32")
    return token


class Access:
    """The rule for one address."""

    def __init__(self, token: Path | None, *, local_names: bool, changed: Callable[[], None] = lambda: None) -> None:
        """With `local_names` only this host's own names are allowed. Otherwise names without a dot are too.

        Programs invent such names for a Unix socket, to which ssh may lead a browser from loopback. `changed` is called
        when the token changes. Raises ConfigError.
        """
        self._file = token
        self._local_names = local_names
        self._changed = changed
        self.read_at = self.stamps()
        self._token = read_token(token) if token is not None else None

    def stamps(self) -> Stamps:
        """The stamps of the token's file."""
        return stamps_of([self._file] if self._file is not None else [])

    def reload(self) -> None:
        """Reloads the token; keeps the current one if the file cannot be used."""
        self.read_at = self.stamps()
        if self._file is None:
            return
        try:
            token = read_token(self._file)
        except ConfigError as error:
            log.error("status_token_not_reloaded", problems=error.problems)
            return
        if token != self._token:
            self._token = token
            self._changed()
            log.info("status_token_reloaded", file=str(self._file))

    def check(self, request: web.Request) -> None:
        """Raises web.HTTPUnauthorized without the token, if there is one.

        Requests caused by other sites' pages are refused too. Raises web.HTTPMisdirectedRequest for a foreign host name
        (DNS rebinding), and web.HTTPForbidden for cross-site requests.
        """
        if not _is_asked_by_itself(request):
            raise web.HTTPForbidden
        if self._token is not None:
            sent = _token_in(request.headers.get("Authorization", ""))
            if not hmac.compare_digest(_digest(sent), _digest(self._token)):
                raise web.HTTPUnauthorized(headers=_ASK)
        elif not _is_local(request.host) and (self._local_names or "." in request.host):
            raise web.HTTPMisdirectedRequest


def _is_asked_by_itself(request: web.Request) -> bool:
    """Whether the request is same-site, or a followed link (Fetch Metadata)."""
    if request.headers.get("Sec-Fetch-Site", "none") in ("same-origin", "none"):
        return True
    return (request.headers.get("Sec-Fetch-Mode"), request.headers.get("Sec-Fetch-Dest")) == ("navigate", "document")


def _token_in(authorization: str) -> bytes:
    """The token sent, b"" if there is none or it cannot be parsed."""
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip().encode(errors="surrogateescape")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


def _digest(token: bytes) -> bytes:
    """Returns a digest of fixed length, for a comparison in constant time."""
    return hashlib.sha256(token).digest()


def _is_local(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return name.lower() == "localhost"
