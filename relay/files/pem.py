"""Files in PEM that settings name, as OpenSSL takes them: regular files alone, each opened here and by nobody else.
Standard: open(2), fifo(7): who opens a FIFO waits for somebody at its other end, and all that the thread serves waits.

OpenSSL opens files by name. It gets the name that proc(5) has for a descriptor. So nobody can exchange the file between
the look at it and its use.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from relay.errors import ConfigError
from relay.files import open_regular, permissions


def trusting(ca: Path) -> ssl.SSLContext:
    """A client's settings, which trusts these certificates alone. Raises ConfigError, and ssl.SSLError for content."""
    with _opened(ca) as name:
        return ssl.create_default_context(cafile=name)


def trust(context: ssl.SSLContext, ca: Path) -> None:
    """Trusts these certificates as well. Raises what `trusting` does."""
    with _opened(ca) as name:
        context.load_verify_locations(cafile=name)


def show(
    context: ssl.SSLContext, certificate: Path, key: Path | None, password: Callable[[], str] | str | None = None
) -> None:
    """Takes a certificate, with its chain, and its private key; by default they are in one file.

    Raises ConfigError, and ssl.SSLError or ValueError for their content.
    """
    with _opened(certificate) as shown, _opened(key or certificate, private=True) as secret:
        context.load_cert_chain(shown, secret, password=password)


@contextmanager
def _opened(path: Path, *, private: bool = False) -> Iterator[str]:
    """The name of a descriptor of this file. Raises ConfigError, which names the file."""
    try:
        descriptor = open_regular(path)
    except OSError as error:
        raise ConfigError(permissions.cause(path, error, private=private)) from error
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
