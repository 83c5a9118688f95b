"""Organisations whose Postfix has only the milter: a site, its Postfix, and a sink where all its mail ends.
Standard: deploy/postfix/milter as it stands, but for ports and what a test changes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from relay.config import TCPAddress
from relay.formats import mime
from tests.testlib import postfix
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import Postfix
from tests.testlib.sink import Got, Sink

IN_CLEAR = 'levels = ["plaintext"]\n'
MILTER = 'milter = "127.0.0.1:0"'
TRACE_FIELDS = {b"received", b"return-path", b"delivered-to", b"x-qumail-protection"}


@dataclass
class Organisation:
    """Its Postfix, and the sink for its users' mail and for what goes to nobody that it knows."""

    postfix: Postfix
    mailboxes: Sink

    async def delivered(self, recipient: str) -> Got:
        """Waits for the first mail to somebody."""
        while not (found := [got for got in self.mailboxes.got if recipient in got.recipients]):
            await self.mailboxes.messages(len(self.mailboxes.got) + 1)
        return found[0]

    async def sendmail(self, text: str, *words: str) -> None:
        """Submits a mail as programs of this host do; `text` has line feeds."""
        await postfix.run(
            "sh", "-c", 'printf "%s" "$TEXT" | sendmail "$@"', "sh", *words,
            environment={"MAIL_CONFIG": str(self.postfix.config), "TEXT": text},
        )  # fmt: skip


def policies(name: str, peer: str) -> dict[str, str]:
    """Level aes for the peer, nothing for the own domain and clear.example."""
    return {
        f"{peer}.example.toml": 'levels = ["aes"]\n',
        f"{name}.example.toml": IN_CLEAR,
        "clear.example.toml": IN_CLEAR,
    }


@asynccontextmanager
async def postfix_of(
    name: str,
    *,
    smtp: TCPAddress,
    outgoing: TCPAddress,
    incoming: TCPAddress,
    again: TCPAddress,
    mailboxes: Sink,
    opened: TCPAddress | None = None,
    elsewhere: Mapping[str, TCPAddress] | None = None,
    settings: Mapping[str, str] | None = None,
    changes: str = "",
) -> AsyncIterator[Organisation]:
    """A running Postfix with the relay's two milters; `elsewhere` says where the mail of other domains goes.

    It takes opened mail back at `opened`, sealed mail at `again`.
    """
    [unknown] = free_addresses(1)
    here = f"mailboxes:[{mailboxes.address.host}]:{mailboxes.address.port}"
    roads = {f"{name}.example": here} | {
        domain: f"smtp:[{there.host}]:{there.port}" for domain, there in (elsewhere or {}).items()
    }
    async with postfix.running(
        smtp=smtp,
        fragments=("milter",),
        ports={15028: outgoing, 15038: incoming, 15026: again, 15036: opened or unknown},
        settings={
            "myhostname": f"mail.{name}.example",
            "myorigin": f"{name}.example",
            "relay_domains": f"{name}.example",
            "default_transport": here,
            "transport_maps": f"inline:{{ {', '.join(f'{domain}={road}' for domain, road in roads.items())} }}",
            **(settings or {}),
        },
        changes=changes,
    ) as running:
        yield Organisation(running, mailboxes)


def original_part(arrived: bytes, original: bytes) -> bytes:
    """What was delivered, without the trace fields that servers put on top."""
    trace = arrived[: len(arrived) - len(original)]
    assert {name for name, _ in mime.fields(trace)} <= TRACE_FIELDS, trace
    return arrived[len(trace) :]
