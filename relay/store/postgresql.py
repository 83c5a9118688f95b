"""PostgreSQL: how it is connected to, and whether its URL asks for TLS with a verified certificate, and can get it.
Standard: what PostgreSQL documents as durable; libpq's URLs, with sslmode, sslrootcert, sslcert and sslkey, as asyncpg
reads them there and in the environment.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Table
from sqlalchemy.engine import URL

from relay.errors import ConfigError, StoreUnavailable
from relay.files import open_regular, pem

if TYPE_CHECKING:  # loaded where there is a server: most relays have none, and it takes 10 MB
    from sqlalchemy.dialects.postgresql import Insert
    from sqlalchemy.ext.asyncio import AsyncEngine

CONNECT_TIMEOUT_S = 10.0
"""Seconds for a connection to PostgreSQL."""
COMMAND_TIMEOUT_S = 30.0
"""Seconds for one statement on PostgreSQL."""
FROZEN_S = 20.0
"""Seconds after which the server ends an idle transaction."""
MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
"""libpq's, weakest first; only the last two verify whom they speak to, and only the last one by its name."""
_VERIFYING = ("verify-ca", "verify-full")
_TLS_FILES = {"sslrootcert": "root.crt", "sslcrl": "root.crl", "sslcert": "postgresql.crt", "sslkey": "postgresql.key"}
"""The settings that name a file, each with the name that it has in ~/.postgresql where none is set."""


APPLICATION = "qumail-relay"
"""How the server's list of connections (application_name) calls those of relays, at its beginning."""


def application_name(schema: int) -> str:
    """The name of a connection of a relay with this version of the schema; older ones say no version."""
    return f"{APPLICATION} schema {schema}"


def postgresql_engine(url: URL, schema: int, *, busy_timeout: float, pool_timeout: float) -> AsyncEngine:
    """A pool of connections; a lock that is not obtained within `busy_timeout` is an error.

    One of our own connections is waited for `pool_timeout`; times are seconds. `schema` is the version of the relay's
    tables. Raises ConfigError.
    """
    try:
        import asyncpg
    except ImportError as error:
        raise ConfigError("a store in PostgreSQL needs the Python package asyncpg") from error
    from sqlalchemy.ext.asyncio import create_async_engine

    check_tls(url)
    settings = {
        "application_name": application_name(schema),
        "lock_timeout": f"{busy_timeout * 1000:.0f}",
        # A relay that is frozen, or whose host is gone, in the middle of a transaction keeps nobody waiting for long.
        "idle_in_transaction_session_timeout": f"{FROZEN_S * 1000:.0f}",
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "4",
    }
    # Whatever the server's default, what we stored must be on its disk; stricter settings are left alone.
    durable = "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"

    async def connect() -> Any:
        if problems := list(_no_regular_files(url)):
            raise StoreUnavailable("; ".join(problems))
        try:
            connection = await asyncpg.connect(
                url.render_as_string(hide_password=False),
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=COMMAND_TIMEOUT_S,
                server_settings=settings,
            )
            await connection.execute(durable)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
            raise StoreUnavailable(f"{without_secrets(url)}: {error}") from error
        return connection

    return create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        pool_pre_ping=True,
        pool_timeout=pool_timeout,
        hide_parameters=True,
    )


def postgresql_insert(table: Table) -> Insert:
    """An INSERT that knows ON CONFLICT."""
    from sqlalchemy.dialects.postgresql import insert

    return insert(table)


def without_secrets(url: URL) -> str:
    """The URL as text for messages: no password, and no options, which might hold one too."""
    return url.set(query={}).render_as_string(hide_password=True)


def check_tls(url: URL) -> None:
    """Raises ConfigError where what the URL says of TLS cannot be right; nobody is connected to."""
    if problems := list(_problems(url)):
        raise ConfigError([f"the store's URL: {problem}" for problem in problems])


def exposed(url: URL) -> str:
    """Why others on the way could read or be the store, and what to write; "" where they cannot."""
    if _mode(url) == "verify-full" or not (elsewhere := [host for host in _hosts(url) if not _is_local(host)]):
        return ""
    return (
        f"{elsewhere[0]} is another host, and an attacker on the way may read the store or impersonate it: write "
        "?sslmode=verify-full&sslrootcert=/path/of/its/ca.pem at the end of store.database"
    )


def _problems(url: URL) -> Iterator[str]:
    mode = _mode(url)
    if mode not in (None, *MODES):
        yield f"sslmode: {mode!r} is none of {', '.join(MODES)}"
    authority = _setting(url, "sslrootcert")
    if mode in _VERIFYING and not authority and not Path("~/.postgresql/root.crt").expanduser().exists():
        yield f"sslrootcert: not set, and {mode} needs the certificate of the CA to trust"
    if authority and (cause := _unreadable(authority) or _no_certificates(authority)):
        yield f"sslrootcert: {authority}: {cause}"
    certificate, key = _setting(url, "sslcert"), _setting(url, "sslkey")
    causes = [(name, path, _unreadable(path)) for name, path in (("sslcert", certificate), ("sslkey", key)) if path]
    yield from (f"{name}: {path}: {cause}" for name, path, cause in causes if cause)
    if certificate and not any(cause for *_, cause in causes) and (cause := _no_pair(certificate, key)):
        yield f"sslcert, sslkey: {cause}"


def _hosts(url: URL) -> list[str]:
    """Returns the hosts that the driver may connect to; "a service" where they are in a service file."""
    if "service" in url.query or os.environ.get("PGSERVICE"):
        return ["a service"]
    named = url.query.get("host", ())
    every = [url.host or "", *([named] if isinstance(named, str) else named)]
    hosts = [host.strip() for each in every for host in each.split(",") if host.strip()]
    return hosts or [os.environ.get("PGHOST", "")]


def _is_local(host: str) -> bool:
    """A Unix socket or this machine; a port behind a name does not matter."""
    if not host or host[0] in "/@" or host.partition(":")[0] == "localhost":
        return True
    for text in (host.strip("[]"), host.rpartition(":")[0].strip("[]")):
        try:
            return ipaddress.ip_address(text).is_loopback
        except ValueError:
            continue
    return False


def _mode(url: URL) -> str | None:
    return _setting(url, "sslmode")


def _setting(url: URL, name: str) -> str | None:
    """What the URL says, else the environment (PGSSLMODE and so on); the last one where it says it twice."""
    said = url.query.get(name)
    if said is None:
        return os.environ.get(f"PG{name.upper()}")
    return said if isinstance(said, str) else said[-1]


def _no_regular_files(url: URL) -> Iterator[str]:
    """What the driver would open by itself, in the event loop, and wait for, as for a FIFO.

    Who may write to these directories could exchange a file after this look.
    """
    for name, usual in _TLS_FILES.items():
        path = Path(_setting(url, name) or Path("~/.postgresql", usual).expanduser())
        with suppress(OSError):  # which the driver says
            if not stat.S_ISREG(path.stat().st_mode):
                yield f"{name}: {path}: not a regular file"


def _unreadable(path: str) -> str:
    try:
        os.close(open_regular(path))
    except OSError as error:
        return str(error.strerror)
    return ""


def _no_certificates(path: str) -> str:
    try:
        pem.trust(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), Path(path))
    except (ssl.SSLError, ValueError):
        return "no certificates in PEM"
    return ""


def _no_pair(certificate: str, key: str | None) -> str:
    """Why these are no certificate with its private key; a key under a password is for nobody to type."""
    try:
        pem.show(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), Path(certificate), Path(key) if key else None, "")
    except (ssl.SSLError, ValueError, OSError) as error:
        return str(error)
    return ""
