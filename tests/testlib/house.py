"""One organisation whose users are local users of its Postfix, in each way of deploy/postfix, and Bob's server outside.
Standard: deploy/postfix as it stands, but for ports and what a test changes; local(8) delivers to its own domain.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from relay.config import TCPAddress
from relay.formats import mime
from relay.kme import DevelopmentKMEs
from tests.testlib import mails, postfix
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import Postfix, Queued
from tests.testlib.sink import Got, Sink
from tests.testlib.sites import Site, make_site, serving
from tests.testlib.submit import SMTPReply, submit

WAYS: Mapping[str, tuple[str, ...]] = {
    "lmtp": ("outgoing-lmtp", "incoming-lmtp"),
    "smtp": ("outgoing-smtp", "incoming-smtp"),
    "proxy": ("outgoing-lmtp", "incoming-lmtp", "outgoing-proxy"),
    "incoming-proxy": ("outgoing-lmtp", "incoming-lmtp", "incoming-proxy"),
    "milter": ("milter",),
    "smarthost": ("smarthost",),
}
"""Directories of deploy/postfix that are applied together."""
POLICIES = {"bob.example.toml": 'levels = ["aes"]\n', "alice.example.toml": 'levels = ["plaintext"]\n'}
ENTRIES = 'lmtp = "127.0.0.1:0"\nmilter = "127.0.0.1:0"'
POLL_S = 0.05


@dataclass
class House:
    """Alice's organisation, one of the WAYS; `entry` is where its users submit, `own` has its mailboxes, `bob` is Bob's server."""

    way: str
    site: Site
    postfix: Postfix
    entry: TCPAddress
    own: Sink
    bob: Sink

    async def send(self, subject: str, *recipients: str, sender: str = "ann@alice.example") -> SMTPReply:
        """The reply to a mail of this subject, by which it can be told from others."""
        message = mails.plain(subject, f"The body of {subject}.\r\n").replace(b"<1@", f"<{subject}@".encode())
        return await submit(self.entry, message, sender=sender, recipients=recipients)

    async def sendmail(self, subject: str, *recipients: str, header: str = "") -> None:
        """Submits such a mail as programs of this host do, under further fields."""
        text = f"{header}Subject: {subject}\nMessage-ID: <{subject}@alice.example>\n\nThe body of {subject}.\n"
        await postfix.run(
            "sh", "-c", 'printf "%s" "$TEXT" | sendmail "$@"', "sh", "-f", "ann@alice.example", *recipients,
            environment={"MAIL_CONFIG": str(self.postfix.config), "TEXT": text},
        )  # fmt: skip

    async def settled(self) -> set[str]:
        """Waits until no mail is on its way in the queue; the recipients of those that wait for another try."""
        async with asyncio.timeout(postfix.DEADLINE_S):
            queue = await self.postfix.queue()
            while any(each.queue != "deferred" and not self._does_not_get_in(each) for each in queue):
                await asyncio.sleep(POLL_S)
                queue = await self.postfix.queue()
        return {each.recipient for each in queue}

    def _does_not_get_in(self, queued: Queued) -> bool:
        """Whether the milter has turned away what sendmail(1) has submitted, so that it stays in maildrop."""
        quoted = re.escape(queued.recipient)
        return queued.queue == "maildrop" and bool(
            re.search(f"cleanup.* milter-reject: .* to=<{quoted}>", self.postfix.log)
        )

    def delivered(self, subject: str) -> list[str]:
        """Who has got the mail of this subject, in clear or sealed, each as often as it came."""
        found = [got for got in self.own.got + self.bob.got if f"<{subject}@".encode() in got.message]
        return sorted(recipient for got in found for recipient in got.recipients)

    @property
    def unsealed_at_bob(self) -> list[Got]:
        """What has reached Bob's server in clear."""
        return [got for got in self.bob.got if not mime.is_sealed(got.message)]


@asynccontextmanager
async def house(
    way: str,
    directory: Path,
    kmes: DevelopmentKMEs,
    *,
    settings: Mapping[str, str] | None = None,
    changes: str = "",
    policies: Mapping[str, str] = POLICIES,
    relay_settings: str = "",
    kme_settings: str = "",
    tables: str = "",
) -> AsyncIterator[House]:
    """An organisation that runs; `settings` are lines of main.cf before deploy/postfix is applied, `changes` shell
    commands after it, `relay_settings` go into [outgoing] and [incoming], `tables` into relay.toml.
    """
    smtp, submission, sealed, opened = free_addresses(4)
    async with AsyncExitStack() as stack:
        own, bob = [await stack.enter_async_context(Sink()) for _ in range(2)]
        alone = way == "smarthost"
        site = make_site(
            directory / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], policies=policies,
            outgoing=bob.address if alone else sealed, incoming=opened,
            settings=f"{ENTRIES}\n{relay_settings}", kme_settings=kme_settings,
        )  # fmt: skip
        site.config_file.write_text(site.config_file.read_text() + tables)
        relay = await stack.enter_async_context(serving(site))
        running = await stack.enter_async_context(
            postfix.running(
                smtp=smtp,
                submission=submission,
                fragments=WAYS[way],
                ports={
                    15024: relay["outgoing_lmtp"], 15025: relay["outgoing"], 15026: sealed,
                    15028: relay["outgoing_milter"], 15034: relay["incoming_lmtp"], 15035: relay["incoming"],
                    15036: opened, 15038: relay["incoming_milter"],
                },
                settings={
                    "myhostname": "mail.alice.example",
                    "myorigin": "alice.example",
                    "mydestination": "alice.example, mail.alice.example",
                    "mailbox_transport": f"mailboxes:[{own.address.host}]:{own.address.port}",
                    "transport_maps": "" if alone else f"inline:{{ bob.example=smtp:[127.0.0.1]:{bob.address.port} }}",
                    **(settings or {}),
                },
                changes=changes,
            )
        )  # fmt: skip
        yield House(way, site, running, submission if way == "proxy" else smtp, own, bob)
