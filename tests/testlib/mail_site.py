"""A whole organisation: its Postfix, its relay as a process of its own, its users' mailboxes, its way to its KME.
Standard: Postfix is set up from deploy/postfix, both directions at once, and everything between parts can be cut.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from relay.config import TCPAddress
from relay.store.secret import SiteSecret
from tests.testlib import postfix
from tests.testlib.identities import Identities
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import Postfix
from tests.testlib.sink import Got, Sink
from tests.testlib.sites import DidNotStart, RelayProcess, Site, make_site, relay_process
from tests.testlib.spread import Spread
from tests.testlib.wire import Wire


@dataclass
class MailSite:
    """`name`.example. Its mail comes through `inbound` to `postfix` and ends in `mailboxes`.

    It may have several `relays`, each with a directory of its own (`sites`), in turn.
    `sealed` and `opened` are the ways back from the relay into Postfix, `kme` the way from the relay to its KME.
    """

    name: str
    site: Site
    postfix: Postfix
    mailboxes: Sink
    inbound: Wire
    sealed: Wire
    opened: Wire
    kme: Wire
    sites: list[Site]
    relays: list[RelayProcess]
    _processes: AsyncExitStack
    postfix_works: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def relay(self) -> RelayProcess:
        """The only one, or the first."""
        return self.relays[0]

    async def kill_relay(self, which: int = 0) -> None:
        """SIGKILL; gone when this returns."""
        self.relays[which].kill()
        await self.relays[which].process.wait()

    async def stop_relays(self) -> None:
        """SIGTERM; all are gone when this returns."""
        for relay in self.relays:
            relay.process.terminate()
        for relay in self.relays:
            await relay.process.wait()

    async def restart_relay(self, which: int = 0) -> None:
        """A new process where the killed one was; tried again as a service manager does, while its store is away."""
        async with asyncio.timeout(60):
            while True:
                again = relay_process(self.sites[which], listen=self.relays[which].addresses)
                try:
                    self.relays[which] = await self._processes.enter_async_context(again)
                except DidNotStart:
                    await asyncio.sleep(0.5)
                else:
                    return

    async def make_whole(self) -> None:
        """Everything runs and nothing is cut or waits, whatever was done before."""
        await self.mend()
        if await self.postfix.queue():
            await self.postfix.command("postsuper", "-d", "ALL")

    async def mend(self) -> None:
        """The same, but what is in the queue stays there."""
        self.mailboxes.on_rcpt.clear()
        self.mailboxes.on_data.clear()
        for wire in (self.inbound, self.sealed, self.opened, self.kme):
            await wire.mend()
        for which, relay in enumerate(self.relays):
            if relay.process.returncode is not None:
                await self.restart_relay(which)

    async def delivered(self, recipient: str) -> Got:
        """Waits until there is a mail for this recipient in the mailboxes."""
        while not (found := self.all_delivered(recipient)):
            await self.mailboxes.messages(len(self.mailboxes.got) + 1)
        return found[0]

    async def logged(self, text: str, after: int = 0) -> str:
        """Waits until the relay has logged this, behind so many characters of its log; gives the line."""
        async with asyncio.timeout(30):
            while text not in self.relay.log[after:]:
                await asyncio.sleep(0.02)
        return next(line for line in self.relay.log[after:].splitlines() if text in line)

    def all_delivered(self, recipient: str) -> list[Got]:
        """Every mail for this recipient that was delivered so far."""
        return [got for got in self.mailboxes.got if recipient in got.recipients]


@asynccontextmanager
async def mail_site(
    directory: Path,
    name: str,
    *,
    state: Path,
    kme_url: str,
    smtp: TCPAddress,
    inbound: Wire,
    peer_inbound: Wire,
    policies: Mapping[str, str],
    identities: Identities | None = None,
    settings: str = "",
    postfix_settings: Mapping[str, str] | None = None,
    over: Literal["smtp", "lmtp"] = "smtp",
    submission: TCPAddress | None = None,
    tables: str = "",
    database: str = "relay.db",
    relays: int = 1,
) -> AsyncIterator[MailSite]:
    """A site that runs. `smtp` is where its Postfix shall take mail; `inbound` is in front of that.

    Mail for the peer goes to `peer_inbound`, all other mail to the site's own mailboxes. Postfix speaks `over` to
    the relay; what comes in at `submission`, where that is given, goes through the relay before the queue.
    `tables` go into relay.toml. With more than one of `relays` the `database` is one in PostgreSQL.
    """
    peer = "bob" if name == "alice" else "alice"
    from_outgoing, from_incoming = free_addresses(2)
    real_kme = urlsplit(kme_url)
    async with AsyncExitStack() as stack:
        mailboxes = await stack.enter_async_context(Sink())
        sealed = await stack.enter_async_context(Wire(from_outgoing))
        opened = await stack.enter_async_context(Wire(from_incoming))
        kme = await stack.enter_async_context(Wire(TCPAddress("127.0.0.1", real_kme.port or 443)))
        site = make_site(
            directory,
            name,
            state=state,
            kme_url=f"https://{kme.address}",
            outgoing=sealed.address,
            incoming=opened.address,
            policies=policies,
            settings=f'{settings}\nlmtp = "127.0.0.1:0"',
            identities=identities,
            kme_settings="prefetch = false\n",
        )
        text = site.config_file.read_text().replace('database = "relay.db"', f'database = "{database}"')
        site.config_file.write_text(text + tables)
        processes = await stack.enter_async_context(AsyncExitStack())
        sites = [site, *(_copy(site, number) for number in range(2, relays + 1))]
        running_relays = [await processes.enter_async_context(relay_process(each)) for each in sites]
        addresses = await _in_turn(stack, running_relays)
        here = f"mailboxes:[{mailboxes.address.host}]:{mailboxes.address.port}"
        there = f"smtp:[{peer_inbound.address.host}]:{peer_inbound.address.port}"
        running = await stack.enter_async_context(
            postfix.running(
                smtp=smtp,
                submission=submission,
                fragments=(f"outgoing-{over}", f"incoming-{over}", *(("outgoing-proxy",) if submission else ())),
                ports={
                    15024: addresses["outgoing_lmtp"],
                    15025: addresses["outgoing"],
                    15026: from_outgoing,
                    15034: addresses["incoming_lmtp"],
                    15035: addresses["incoming"],
                    15036: from_incoming,
                },
                settings={
                    "myhostname": f"mail.{name}.example",
                    "relay_domains": f"{name}.example",
                    "default_transport": here,
                    "transport_maps": f"inline:{{ {name}.example={here}, {peer}.example={there} }}",
                }
                | dict(postfix_settings or {}),
            )
        )
        yield MailSite(name, site, running, mailboxes, inbound, sealed, opened, kme, sites, running_relays, processes)


def _copy(site: Site, number: int) -> Site:
    """Another relay of the site: all the same, in a directory of its own."""
    SiteSecret.load_or_create(site.directory / "site.secret")
    copy = site.directory.with_name(f"{site.directory.name}-{number}")
    shutil.copytree(site.directory, copy)
    return Site(copy)


async def _in_turn(stack: AsyncExitStack, relays: Sequence[RelayProcess]) -> Mapping[str, TCPAddress]:
    """The addresses of one relay; of several, addresses that lead to one after the other."""
    if len(relays) == 1:
        return relays[0].addresses
    return {
        name: (await stack.enter_async_context(Spread([each.addresses[name] for each in relays]))).address
        for name in relays[0].addresses
    }
