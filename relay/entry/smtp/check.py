"""The submission server's part of `qumail-relay check`: certificate, password file, Dovecot's socket.
Standard: RFC 8314 (TLS), RFC 5280 (validity), RFC 4954 (AUTH); nothing is changed, and nobody logs in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from relay.config import Config
from relay.entry.server_tls import certificate_state
from relay.entry.smtp.auth import LoginUnavailable
from relay.entry.smtp.dovecot import DovecotBackEnd
from relay.entry.smtp.users import NO_PASSWORD, read_users
from relay.errors import ConfigError


async def states(config: Config) -> AsyncIterator[tuple[str, str, tuple[str, ...]]]:
    """What was looked at, how it stands, and what is wrong with it; nothing without [submission]."""
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
