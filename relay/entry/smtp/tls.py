"""TLS for mail programs: the certificate and its renewal without a restart, and connections that begin with TLS.
Standard: RFC 8314 (TLS 1.2 or later for submission, 3.3 implicit TLS), RFC 3207 (STARTTLS).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import structlog

from relay.entry.listening import Listener
from relay.entry.smtp.session import SMTPSession
from relay.errors import ConfigError

log = structlog.get_logger(__name__)

HANDSHAKE_S = 30.0
RETRY_S = 1.0
"""After this time it is tried again where no connection could be accepted: too many open files, for instance."""


class ServerTLS:
    """What a handshake uses at this moment; connections keep what they began with."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """PEM files: the certificate with the chain below its root, and its private key. Raises ConfigError."""
        self._certificate = certificate
        self._key = key
        self.context = server_context(certificate, key)

    def reload(self) -> None:
        """Takes the files as they are now; keeps the certificate in use where they cannot be used."""
        try:
            self.context = server_context(self._certificate, self._key)
        except ConfigError as error:
            log.error("certificate_not_reloaded", problems=error.problems)
            return
        log.info("certificate_reloaded", file=str(self._certificate))


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 or later with this certificate. Raises ConfigError where the two files cannot be used."""
    for path in (certificate, key):
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; [submission] needs a certificate and its key, in PEM")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except ssl.SSLError as error:
        what = "the key is another certificate's" if error.reason == "KEY_VALUES_MISMATCH" else str(error)
        raise ConfigError(f"{certificate}, {key}: cannot be used for TLS: {what}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{certificate}, {key}: cannot be read: {error}") from error
    return context


def _no_passphrase() -> str:
    """OpenSSL would ask for one on the terminal, and the relay would wait for it."""
    raise ValueError("the private key is encrypted; the relay needs one without a passphrase")


class TLSServer:
    """Takes connections that begin with TLS, and counts each before its handshake, which may take its time.

    asyncio's own server tells of a connection only after its handshake.
    """

    def __init__(
        self,
        tls: ServerTLS,
        listener: Listener,
        session: Callable[[], SMTPSession],
        sockets: Sequence[socket.socket],
    ) -> None:
        """`session` makes that of one more connection to one of the `sockets`, which listen already."""
        self._tls = tls
        self._listener = listener
        self._session = session
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets = sockets
        for listening in sockets:
            self._run(self._accept(listening))

    def close(self) -> None:
        """Takes no new connection, and ends those whose handshake is not over."""
        for task in self._tasks:
            task.cancel()
        for listening in self._sockets:
            listening.close()

    async def wait_closed(self) -> None:
        """Returns when that is done."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, peer = await loop.sock_accept(listening)
            except OSError as error:
                log.error("connection_not_accepted", cause=str(error))
                await asyncio.sleep(RETRY_S)
                continue
            client, session = str(peer[0]), self._session()
            if reason := self._listener.add(session, client):
                log.warning("connection_refused", client=client, cause=reason)
                self._listener.discard(session)
                accepted.close()
            else:
                self._run(self._shake_hands(accepted, client, session))

    async def _shake_hands(self, accepted: socket.socket, client: str, session: SMTPSession) -> None:
        """After the handshake the session lives by itself."""
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: session, accepted, ssl=self._tls.context, ssl_handshake_timeout=HANDSHAKE_S
            )
        except BaseException as error:
            self._listener.discard(session)
            accepted.close()
            if not isinstance(error, OSError):  # TLS errors and timeouts are of this kind
                raise
            log.info("tls_not_begun", client=client, cause=str(error))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
