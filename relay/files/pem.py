"""Opens PEM files of settings for OpenSSL: only regular files, and only here.
Standard: open(2), fifo(7): opening a FIFO would wait for a writer, and block everything in this thread.

OpenSSL opens files by name, and gets the name of a descriptor in proc(5). So the file cannot be exchanged between check
and use.
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
    """A client context that trusts only these certificates. Raises ConfigError, and ssl.SSLError for the content."""
    with _opened(ca) as name:
        return ssl.create_default_context(cafile=name)


def trust(context: ssl.SSLContext, ca: Path) -> None:
    """Adds these trusted certificates. Raises what `trusting` raises."""
    with _opened(ca) as name:
        context.load_verify_locations(cafile=name)


def show(
    context: ssl.SSLContext, certificate: Path, key: Path | None, password: Callable[[], str] | str | None = None
) -> None:
    """Loads a certificate, with its chain, and its private key; by default both are in one file.

    Raises ConfigError, and ssl.SSLError or ValueError for the content.
    """
    with _opened(certificate) as shown, _opened(key or certificate, private=True) as secret:
        context.load_cert_chain(shown, secret, password=password)


@contextmanager
def _opened(path: Path, *, private: bool = False) -> Iterator[str]:
    """The name of a descriptor of this file. Raises ConfigError with the path."""
    try:
        descriptor = open_regular(path)
    except OSError as error:
        raise ConfigError(permissions.cause(path, error, private=private)) from error
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
