"""Messages to test policies with: single files, directories, maildirs and mboxes, one after the other.
Standard: RFC 4155 (mbox, with its quoted From lines), Maildir; messages are processed one at a time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import getaddresses
from pathlib import Path
from typing import NoReturn

from relay.errors import ConfigError, MalformedMessage
from relay.files import permissions
from relay.formats import mime
from relay.policy.content import MessageFacts

MAX_MESSAGE_OCTETS = 64 * 1024 * 1024
"""Maximum message size, in bytes; a larger one is cut to this size."""
MAX_RECIPIENTS = 1000
MAX_FILES = 5_000_000
_NULL_SENDER = "<>"


@dataclass(frozen=True, slots=True)
class TrafficSample:
    """One message as if it were sent: `sender` and `recipients` from its header.

    `content` is None if only the size is known.
    """

    name: str
    sender: str
    recipients: tuple[str, ...]
    size: int
    content: MessageFacts | None = field(default=None, repr=False)


def samples(paths: list[Path]) -> Iterator[TrafficSample]:
    """Every message in files, directories (with all below them), maildirs and mboxes. Raises ConfigError."""
    for path in paths:
        for file in _files(path):
            try:
                yield from _messages(file)
            except OSError as error:
                raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error


def _files(path: Path) -> Iterator[Path]:
    """The files of messages; of a maildir only those in `cur` and `new`, not `tmp`."""
    if path.is_dir():
        paths = (Path(directory, name) for directory, _, names in os.walk(path, onerror=_not_listed) for name in names)
        for number, file in enumerate(paths):
            if number > MAX_FILES:
                raise ConfigError(f"{path}: more than {MAX_FILES} files")
            if not file.name.startswith(".") and file.parent.name != "tmp" and file.is_file():
                yield file
    elif path.is_file():
        yield path
    else:
        raise ConfigError(f"{path}: neither a file nor a directory")


def _not_listed(error: OSError) -> NoReturn:
    """Raises ConfigError: a total without an unreadable directory would be misleading."""
    raise ConfigError(permissions.cause(error.filename, error)) from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _messages(path: Path) -> Iterator[TrafficSample]:
    with path.open("rb") as file:
        start = file.read(5)
        file.seek(0)
        if start != b"From ":
            raw = file.read(MAX_MESSAGE_OCTETS)
            yield _sample(str(path), raw, _size(path))
            return
        lines: list[bytes] = []
        number, size, blank = 0, 0, True
        for line in iter(lambda: file.readline(1024 * 1024), b""):
            if blank and line.startswith(b"From "):
                if number:
                    yield _sample(f"{path}:{number}", b"".join(lines), size)
                number, lines, size = number + 1, [], len(line)
            else:
                size += len(line)
                if size <= MAX_MESSAGE_OCTETS:
                    lines.append(line[1:] if re.match(rb">+From ", line) else line)
            blank = line in (b"\n", b"\r\n")
        yield _sample(f"{path}:{number}", b"".join(lines), size)


def _sample(name: str, raw: bytes, read: int) -> TrafficSample:
    message = mime.as_sent(raw)
    size = max(len(message), read if read > MAX_MESSAGE_OCTETS else 0)
    try:
        sender, recipients = _envelope(message)
    except MalformedMessage:
        sender, recipients = "", ()
    return TrafficSample(name, sender, recipients, size, MessageFacts(message))


def _envelope(message: bytes) -> tuple[str, tuple[str, ...]]:
    """Sender and recipients as a mail program would give them to SMTP."""
    header, _ = mime.split(message)
    fields: dict[bytes, list[str]] = {}
    for name, raw in mime.fields(header):
        if name in (b"return-path", b"sender", b"from", b"to", b"cc", b"bcc"):
            text = raw[:65536].partition(b":")[2].replace(b"\r\n", b"").decode("utf-8", "replace").strip()
            fields.setdefault(name, []).append(text)
    from_fields = () if _NULL_SENDER in fields.get(b"return-path", []) else (b"return-path", b"sender", b"from")
    senders = [address for name in from_fields for address in _addresses(fields.get(name, []))]
    recipients = [address for name in (b"to", b"cc", b"bcc") for address in _addresses(fields.get(name, []))]
    return next(iter(senders), ""), tuple(dict.fromkeys(recipients[:MAX_RECIPIENTS]))


def _addresses(values: list[str]) -> list[str]:
    try:
        return [address for _, address in getaddresses(values) if "@" in address]
    except RecursionError:  # comments within comments
        return []
