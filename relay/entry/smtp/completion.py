"""Prepares a submitted mail for delivery: checks its authors, adds Date and Message-ID.
Standard: RFC 6409 6.1 (authors), 8.2 and 8.3 (missing Date and Message-ID); nothing else is touched.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Protocol, TypeVar

from relay.entry import Recipe
from relay.entry.smtp.senders import SenderRights
from relay.errors import Refuse, RelayError, TryLater
from relay.formats import mime
from relay.mail import Mail, Outcomes

REMEMBERED = 1000
"""Number of mails without Date or Message-ID whose added fields are kept for a retry."""


class Rights(Protocol):
    """Returns the addresses that users may send from."""

    async def rights(self, name: str) -> SenderRights | None:
        """The sender addresses; None if the user no longer exists."""


class NoUser(Refuse):
    """The client has not authenticated, or the user no longer exists."""

    code = 530
    status = "5.7.0"
    public = "Authentication required"


class Completion:
    """The outgoing recipe for submitted mail.

    A retry gets the same fields as the first attempt. Otherwise it would be another mail, and sent twice.
    """

    def __init__(self, recipe: Recipe, users: Rights, hostname: str, *, check_from: bool) -> None:
        self._recipe = recipe
        self._users = users
        self._hostname = hostname
        self._check_from = check_from
        self._waiting: OrderedDict[bytes, bytes] = OrderedDict()
        self._done: OrderedDict[str, tuple[bytes, bytes]] = OrderedDict()

    def check_recipient(self, sender: str, recipient: str) -> None:
        self._recipe.check_recipient(sender, recipient)

    def not_taken(self, mail: Mail, errors: Mapping[str, RelayError]) -> None:
        self._recipe.not_taken(mail, errors)

    async def process(self, mail: Mail) -> Outcomes:
        """Raises FromNotAllowed, MalformedMessage, and what the recipe raises."""
        rights = await self._users.rights(mail.origin.user)
        if rights is None:
            raise NoUser(mail.origin.user)
        missing = await asyncio.to_thread(self._look, mail.message, rights)
        if not missing:
            return await self._recipe.process(mail)
        return await self._completed(mail, missing)

    def client_answered(self, mail: Mail) -> None:
        self._done.pop(mail.id, None)
        self._recipe.client_answered(mail)

    async def client_gone(self, mail: Mail, outcomes: Outcomes) -> None:
        if (done := self._done.pop(mail.id, None)) is not None:
            key, added = done
            _put(self._waiting, key, added)  # at once: the retry may already be on its way
            mail = mail.changed(message=added + mail.message)
        await self._recipe.client_gone(mail, outcomes)

    def _look(self, message: bytes, rights: SenderRights) -> frozenset[bytes]:
        """Checks the authors and returns the missing fields. Raises as `process` does."""
        mime.check_first_line(message)  # before fields are put in front of it
        if self._check_from:
            rights.check_from(message)
        names = {name for name, _ in mime.fields(mime.header_of(message))}
        return frozenset({b"date", b"message-id"}) - names

    async def _completed(self, mail: Mail, missing: frozenset[bytes]) -> Outcomes:
        key = await asyncio.to_thread(_key, mail)
        added = self._waiting.get(key) or self._fields(missing)
        _put(self._waiting, key, added)
        outcomes: Outcomes = ()
        try:
            outcomes = await self._recipe.process(mail.changed(message=added + mail.message))
        except Refuse as error:
            outcomes = (error,)
            raise
        finally:
            if outcomes and not any(isinstance(outcome, TryLater) for outcome in outcomes):
                self._waiting.pop(key, None)
        _put(self._done, mail.id, (key, added))
        return outcomes

    def _fields(self, missing: frozenset[bytes]) -> bytes:
        fields = b""
        if b"date" in missing:
            fields += f"Date: {format_datetime(datetime.now(UTC))}\r\n".encode()
        if b"message-id" in missing:
            fields += f"Message-ID: <{secrets.token_hex(16)}@{self._hostname}>\r\n".encode()
        return fields


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def _put(table: OrderedDict[_Key, _Value], key: _Key, value: _Value) -> None:
    """Adds to a table that drops its oldest entry when full."""
    table[key] = value
    if len(table) > REMEMBERED:
        table.popitem(last=False)


def _key(mail: Mail) -> bytes:
    """The key of a mail and its retries: user, sender and message."""
    digest = hashlib.sha256(mail.message)
    digest.update(repr((mail.origin.user, mail.envelope.sender)).encode())
    return digest.digest()
