"""The submission server's part of `qumail-relay check`: certificate, password file, Dovecot's socket.
Standard: RFC 8314 (TLS), RFC 5280 (validity), RFC 4954 (AUTH); nothing is changed, and nobody logs in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from relay.config import Config
from relay.entry.smtp.auth import LoginUnavailable
from relay.entry.smtp.dovecot import DovecotBackEnd
from relay.entry.smtp.tls import server_context
from relay.entry.smtp.users import NO_PASSWORD, read_users
from relay.errors import ConfigError

EXPIRES_SOON = timedelta(days=14)
"""Certificates that renew themselves do so earlier."""


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


def certificate_state(certificate: Path, key: Path, now: datetime) -> tuple[str, list[str]]:
    """Whom the certificate is for and until when, and what is or will soon be wrong with the two files."""
    try:
        server_context(certificate, key)
        leaf = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
    except ConfigError as error:
        return str(certificate), error.problems
    until = leaf.not_valid_after_utc
    detail = f"{certificate}: for {', '.join(_names(leaf)) or 'no host name'}, until {until:%Y-%m-%d}"
    return detail, list(_problems(leaf, certificate, key, now))


def _problems(leaf: x509.Certificate, certificate: Path, key: Path, now: datetime) -> Iterator[str]:
    begin, until = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    if now < begin:
        yield f"{certificate}: is valid only from {begin:%Y-%m-%d %H:%M} UTC on"
    if until <= now:
        yield f"{certificate}: expired on {until:%Y-%m-%d %H:%M} UTC: mail programs refuse it"
    elif until - now < EXPIRES_SOON:
        yield f"{certificate}: expires on {until:%Y-%m-%d %H:%M} UTC, in {(until - now).days} days: renew it"
    if key.stat().st_mode & 0o007:
        yield f"{key}: everybody on this host can read or change the private key: chmod 640 {key}"


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)
