"""Opens the SMTP listener: a listener for SMTP and LMTP of each direction, and the submission server.
Its interface to process/app.py and `check` is here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial

from relay.config import Config, TCPAddress
from relay.entry import Inside, Listener
from relay.entry.listening import SocketServer, SocketServers, Where, address_of, server_inside
from relay.entry.server_tls import ServerTLS, certificate_state, server_context
from relay.entry.smtp.aiosmtpd_base import silence_log
from relay.entry.smtp.auth import LoginUnavailable
from relay.entry.smtp.completion import Completion
from relay.entry.smtp.dovecot import DovecotBackEnd
from relay.entry.smtp.session import LMTPSession, SMTPSession
from relay.entry.smtp.submission import SubmissionService, SubmissionSession, submission_service
from relay.entry.smtp.tls import TLSServer
from relay.entry.smtp.users import NO_PASSWORD, read_users
from relay.errors import ConfigError


def listens_on(config: Config) -> dict[str, Where]:
    """The addresses of [outgoing], [incoming] and [submission], by setting."""
    addresses: dict[str, TCPAddress | None] = {}
    for name, direction in (("outgoing", config.outgoing), ("incoming", config.incoming)):
        if direction is not None:
            addresses |= {f"{name}.listen": direction.listen, f"{name}.lmtp": direction.lmtp}
    if (users := config.submission) is not None:
        addresses |= {"submission.listen": users.listen, "submission.listen_tls": users.listen_tls}
    return {setting: where for setting, where in addresses.items() if where is not None}


@asynccontextmanager
async def listener(inside: Inside) -> AsyncIterator[Listener]:
    """The listener. Raises ConfigError if a file of [submission] cannot be used, and StoreUnavailable."""
    silence_log()
    async with AsyncExitStack() as stack:
        service = None
        if (table := inside.config.submission) is not None:
            service = await stack.enter_async_context(submission_service(table, inside))
        yield SMTPListener(inside, service)


class SMTPListener(SocketServers):
    """A SocketServer for each address of a direction, and one for all of [submission], which share their limits."""

    def __init__(self, inside: Inside, submission: SubmissionService | None) -> None:
        super().__init__()
        self._sockets = inside.sockets
        self._submission = submission
        self._sessions: dict[str, tuple[SocketServer, Callable[[], SMTPSession]]] = {}
        config, hostname = inside.config, inside.config.site.hostname
        for name, direction, recipe in inside.directions:
            for setting, protocol, session in (("listen", "smtp", SMTPSession), ("lmtp", "lmtp", LMTPSession)):
                server = server_inside(inside, name, protocol, direction)
                self._sessions[f"{name}.{setting}"] = server, partial(session, server, hostname, recipe)
        if (users := config.submission) is not None and submission is not None and inside.outgoing is not None:
            completion = Completion(inside.outgoing, submission.logins.back_end, hostname, check_from=users.check_from)
            server = server_inside(inside, "outgoing", "submission", users)
            new = partial(SubmissionSession, server, hostname, completion, submission)
            self._sessions |= {"submission.listen": (server, new), "submission.listen_tls": (server, new)}
        self.servers.update(server for server, _ in self._sessions.values())

    async def start(self) -> dict[str, TCPAddress]:
        """The bound addresses as `outgoing`, `outgoing_lmtp`, `submission_tls` and so on."""
        addresses: dict[str, TCPAddress] = {}
        for setting, (server, session) in self._sessions.items():
            if sockets := self._sockets.get(setting):
                if self._submission is not None and setting == "submission.listen_tls":
                    server.servers.append(TLSServer(self._submission.tls, server, session, sockets))
                else:
                    await server.listen(sockets, session)
                addresses[setting.replace(".listen", "").replace(".", "_")] = address_of(sockets)
        return addresses

    @property
    def reloadable(self) -> Sequence[ServerTLS]:
        """The certificate of [submission]."""
        return [self._submission.tls] if self._submission is not None else []


def read_files(config: Config) -> None:
    """Reads certificate and password file of [submission]. Raises ConfigError."""
    if (table := config.submission) is not None:
        server_context(table.certificate, table.key)
        if table.users is not None:
            read_users(table.users)


async def states(config: Config) -> AsyncIterator[tuple[str, str, tuple[str, ...]]]:
    """For `check`: certificate, password file and Dovecot socket of [submission], with state and faults.

    Changes nothing, and logs nobody in.
    """
    table = config.submission
    if table is None:
        return
    detail, problems = await asyncio.to_thread(certificate_state, table.certificate, table.key, datetime.now(UTC))
    yield "submission certificate", detail, tuple(problems)
    if table.users is not None:
        try:
            users = read_users(table.users)
        except ConfigError as error:
            yield "submission users", str(table.users), tuple(error.problems)
        else:
            without = [user.name for user in users.values() if user.password_hash == NO_PASSWORD]
            cannot = [f"{table.users}: user {name} has no password" for name in without if not table.dovecot_auth]
            yield "submission users", f"{table.users}: {len(users)} users", tuple(cannot)
    if table.dovecot_auth is not None:
        try:
            await DovecotBackEnd(table.dovecot_auth, config.site.domains, None).handshake()
        except LoginUnavailable as error:
            yield "submission dovecot_auth", str(table.dovecot_auth), (str(error),)
        else:
            yield "submission dovecot_auth", str(table.dovecot_auth), ()
