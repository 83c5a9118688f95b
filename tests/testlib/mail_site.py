"""A whole organisation: its Postfix, its relay as a process of its own, its users' mailboxes, its way to its KME.
Standard: Postfix is set up from deploy/postfix, both directions at once, and everything between parts can be cut.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from relay.config import Address
from tests.testlib import postfix
from tests.testlib.identities import Identities
from tests.testlib.postfix import Postfix
from tests.testlib.sink import Got, Sink
from tests.testlib.sites import RelayProcess, Site, make_site, relay_process
from tests.testlib.wire import Wire


@dataclass
class MailSite:
    """`name`.example. Its mail comes through `inbound` to `postfix` and ends in `mailboxes`.

    `sealed` and `opened` are the ways back from the relay into Postfix, `kme` the way from the relay to its KME.
    """

    name: str
    site: Site
    postfix: Postfix
    relay: RelayProcess
    mailboxes: Sink
    inbound: Wire
    sealed: Wire
    opened: Wire
    kme: Wire
    _processes: AsyncExitStack

    async def kill_relay(self) -> None:
        """SIGKILL; gone when this returns."""
        self.relay.kill()
        await self.relay.process.wait()

    async def restart_relay(self) -> None:
        """A new process where the killed one was."""
        listen = self.relay.addresses
        self.relay = await self._processes.enter_async_context(relay_process(self.site, listen=listen))

    async def make_whole(self) -> None:
        """Everything runs and nothing is cut or waits, whatever was done before."""
        self.mailboxes.on_rcpt.clear()
        for wire in (self.inbound, self.sealed, self.opened, self.kme):
            await wire.mend()
        if self.relay.process.returncode is not None:
            await self.restart_relay()
        if await self.postfix.queue():
            await self.postfix.command("postsuper", "-d", "ALL")

    async def delivered(self, recipient: str) -> Got:
        """Waits until there is a mail for this recipient in the mailboxes."""
        while not (found := self.all_delivered(recipient)):
            await self.mailboxes.messages(len(self.mailboxes.got) + 1)
        return found[0]

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
    smtp: Address,
    inbound: Wire,
    peer_inbound: Wire,
    policies: Mapping[str, str],
    identities: Identities | None = None,
    settings: str = "",
) -> AsyncIterator[MailSite]:
    """A site that runs. `smtp` is where its Postfix shall take mail; `inbound` is in front of that.

    Mail for the peer goes to `peer_inbound`, all other mail to the site's own mailboxes.
    """
    peer = "bob" if name == "alice" else "alice"
    from_outgoing, from_incoming = postfix.free_addresses(2)
    real_kme = urlsplit(kme_url)
    async with AsyncExitStack() as stack:
        mailboxes = await stack.enter_async_context(Sink())
        sealed = await stack.enter_async_context(Wire(from_outgoing))
        opened = await stack.enter_async_context(Wire(from_incoming))
        kme = await stack.enter_async_context(Wire(Address("127.0.0.1", real_kme.port or 443)))
        site = make_site(
            directory,
            name,
            state=state,
            kme_url=f"https://{kme.address}",
            outgoing=sealed.address,
            incoming=opened.address,
            policies=policies,
            settings=settings,
            identities=identities,
            kme_settings="cache_low = 0\ncache_high = 0\n",
        )
        processes = await stack.enter_async_context(AsyncExitStack())
        relay = await processes.enter_async_context(relay_process(site))
        here = f"mailboxes:[{mailboxes.address.host}]:{mailboxes.address.port}"
        there = f"smtp:[{peer_inbound.address.host}]:{peer_inbound.address.port}"
        running = await stack.enter_async_context(
            postfix.running(
                smtp=smtp,
                fragments=("outgoing-content-filter", "incoming-content-filter"),
                ports={
                    10025: relay.addresses["outgoing"],
                    10026: from_outgoing,
                    10035: relay.addresses["incoming"],
                    10036: from_incoming,
                },
                settings={
                    "myhostname": f"mail.{name}.example",
                    "relay_domains": f"{name}.example",
                    "default_transport": here,
                    "transport_maps": f"inline:{{ {name}.example={here}, {peer}.example={there} }}",
                },
            )
        )
        yield MailSite(name, site, running, relay, mailboxes, inbound, sealed, opened, kme, processes)
