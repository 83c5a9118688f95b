"""The password file: users, their password hashes and sender addresses.
Standard: one line a user, `name:argon2id hash:address,address`; hashes as RFC 9106 recommends, by argon2-cffi.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import Argon2Error, InvalidHashError

from relay.entry.smtp.senders import SenderRights, parse_rights
from relay.errors import ConfigError
from relay.files import rights
from relay.files.stamps import is_there, stamp_of
from relay.identity.files import changing, read_secret, write

log = structlog.get_logger(__name__)

MAX_MEMORY_KIB = 1024 * 1024
"""Maximum memory for checking a hash, in KiB; more is a mistake, and would exhaust memory."""
MAX_NAME = 255

NO_PASSWORD = "-"  # noqa: S105 - it says that there is none
"""Placeholder for the hash if Dovecot checks passwords and the file only has addresses."""

_NAME = re.compile(r"[^\x00-\x20\x7f-\x9f:,#\ud800-\udfff][^\x00-\x20\x7f-\x9f:,\ud800-\udfff]*")
_HEADER = "# QuMail Relay, who may submit mail: name:hash:addresses (qumail-relay users --help)\n"


@dataclass(frozen=True, slots=True)
class SubmissionUser:
    """One line of the file. `addresses` are as written there, `rights` as parsed."""

    name: str
    password_hash: str = field(repr=False)
    addresses: tuple[str, ...]
    rights: SenderRights

    @property
    def line(self) -> str:
        """Its line in the file."""
        return f"{self.name}:{self.password_hash}:{','.join(self.addresses)}\n"


class UserFile:
    """The current password file. An edit takes effect at the next access; a broken file leaves the last one in force.

    Its methods read files and may take tens of milliseconds: call them in threads.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigError if the file cannot be used."""
        self.path = path
        self._lock = threading.Lock()
        self._seen = stamp_of(path)
        self._users = read_users(path)
        self._hasher = PasswordHasher()
        self._nobody = self._hasher.hash("the password of nobody")

    def get(self, name: str) -> SubmissionUser | None:
        """The user of this name, or None; an overlong name is not folded."""
        return self._current().get(folded_name(name)) if len(name) <= MAX_NAME else None

    def verify(self, name: str, password: str) -> SubmissionUser | None:
        """The user with this password, or None; an unknown name takes as long as a wrong password."""
        user = self.get(name)
        has_password = user is not None and user.password_hash != NO_PASSWORD
        right = matches(self._hasher, user.password_hash if user and has_password else self._nobody, password)
        return user if has_password and right else None

    def _current(self) -> dict[str, SubmissionUser]:
        with self._lock:
            if (state := stamp_of(self.path)) != self._seen:
                self._seen = state
                self._reload()
            return self._users

    def _reload(self) -> None:
        try:
            self._users = read_users(self.path)
        except ConfigError as error:
            log.error("users_not_reloaded", problems=error.problems)
            return
        log.info("users_reloaded", file=str(self.path), users=len(self._users))


def read_users(path: Path) -> dict[str, SubmissionUser]:
    """All users by folded name, in the file's order. Raises ConfigError with one line a fault.

    The file must be readable by its owner alone: an argon2 hash of a weak password can be guessed.
    """
    if not is_there(path):
        raise ConfigError(f"{path}: No such file or directory: the first user makes it: qumail-relay users add NAME")
    try:
        text = read_secret(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8") from error
    users: dict[str, SubmissionUser] = {}
    problems: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            user = parse_user(line.rstrip())
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
            continue
        if users.setdefault(folded_name(user.name), user) is not user:
            problems.append(f"{path}:{number}: user {user.name!r} is there twice")
    if problems:
        raise ConfigError(problems)
    return users


def parse_user(line: str) -> SubmissionUser:
    """Parses one line. Raises ValueError, whose text does not have the hash."""
    parts = line.split(":")
    if len(parts) != 3:
        raise ValueError("a line is name:hash:addresses")
    name, password_hash, addresses = (part.strip() for part in parts)
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise ValueError(f"{name[:80]!r} is no user name: no blanks, colons or commas, no # first")
    if password_hash != NO_PASSWORD:
        _check_hash(name, password_hash)
    entries = tuple(entry for each in addresses.split(",") if (entry := each.strip()))
    return SubmissionUser(name, password_hash, entries, parse_rights(entries))


def folded_name(name: str) -> str:
    """The name as compared: in NFC, with a folded domain after an @."""
    local, at, domain = unicodedata.normalize("NFC", name).rpartition("@")
    return local + at + domain.lower() if at else domain


def hashed(password: str) -> str:
    """An argon2id hash with argon2-cffi's parameters: RFC 9106's for low memory."""
    return PasswordHasher().hash(_prepared(password))


def matches(hasher: PasswordHasher, password_hash: str, password: str) -> bool:
    """Whether the password matches; False for one that no file can have."""
    with suppress(Argon2Error, InvalidHashError):
        return hasher.verify(password_hash, _prepared(password))
    return False


def change_users(
    path: Path, change: Callable[[dict[str, SubmissionUser]], None], *, owner: rights.UnixUser | None = None
) -> None:
    """Applies `change` to the users and replaces the file, mode 600; root creates it for `owner`.

    Comments at the head of the file are kept. Raises ConfigError.
    """
    with changing(path.absolute().parent):
        exists = is_there(path)
        users = read_users(path) if exists else {}
        head = _head(read_secret(path).decode()) if exists else _HEADER
        change(users)
        text = head + "".join(user.line for user in users.values())
        write(path, text.encode(), owner=owner)


def _head(text: str) -> str:
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        if line.strip() and not line.startswith("#"):
            break
        lines.append(line)
    return "".join(lines)


def _check_hash(name: str, password_hash: str) -> None:
    try:
        memory = extract_parameters(password_hash).memory_cost
    except InvalidHashError as error:
        raise ValueError(f"user {name!r} has no argon2 hash; make one with: qumail-relay users add") from error
    if memory > MAX_MEMORY_KIB:
        raise ValueError(f"user {name!r}: checking this hash takes {memory} KiB of memory, more than {MAX_MEMORY_KIB}")


def _prepared(password: str) -> str:
    """RFC 8265, 4.2: one spelling for letters with marks."""
    return unicodedata.normalize("NFC", password)


def listed(users: Iterable[SubmissionUser]) -> list[dict[str, object]]:
    """All users with their addresses, without hashes, for JSON."""
    return [
        {"name": user.name, "addresses": list(user.addresses), "password": user.password_hash != NO_PASSWORD}
        for user in users
    ]
