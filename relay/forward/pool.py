"""Opens connections to next hops as far as the first mail, and keeps them for the mails that come next.
Standard: RFC 5321 3.1, 3.2 (several mails in one session), RFC 2033 4.1 (LHLO), RFC 3207 4.2 (all is asked anew after
STARTTLS), RFC 7435 (opportunistic TLS: where offered, unverified), RFC 8996 (TLS 1.2 at least).
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from pathlib import Path

import structlog

from relay.config import DirectionSettings, Server
from relay.errors import ConfigError
from relay.forward.client import Client, Gone, Silent, Timeouts
from relay.forward.transaction import NextHopResult, Supervision, transact
from relay.mail import Mail

log = structlog.get_logger(__name__)

IDLE_S = 10.0
"""Time a connection waits for the next mail, in seconds: a busy next hop must not lack it for long."""
AGE_S = 300.0
"""Maximum age of a connection, in seconds: a change of the next hop's address is noticed then."""
MAILS = 100
"""Maximum number of mails a connection carries."""
GOODBYE_S = 2.0


class ConnectionPool:
    """The connections of one direction, at most `next_hop_connections` idle ones to each server.

    Either side may close one that is kept.
    """

    def __init__(self, direction: DirectionSettings, hostname: str) -> None:
        """`hostname` is what we call ourselves. Raises ConfigError where a certificate file cannot be used."""
        self._timeouts = Timeouts(direction.timeout)
        self._hostname = hostname.encode("idna" if not hostname.isascii() else "ascii")
        self._tls_mode = direction.next_hop_tls
        self._tls_name = direction.next_hop_tls_name
        self._tls_context = _context(direction.next_hop_ca, verify=self._tls_mode == "required")
        self._most = direction.next_hop_connections
        self._idle: dict[Server, list[Client]] = {}
        self._closed = False

    async def carry(self, server: Server, mail: Mail, supervision: Supervision) -> NextHopResult:
        """The mail over an idle connection, or over a new one where there is none or it has died meanwhile.

        Raises NotTaken or NextHopRefused, for all recipients.
        """
        idle = self._take(server)
        while True:
            client = idle or await self.open(server)
            try:
                result = await transact(client, mail, supervision)
            except BaseException as error:
                client.close()
                if idle is None or isinstance(error, Silent) or not isinstance(error, Gone):
                    raise
                log.debug("idle_connection_was_gone", next_hop=str(server), cause=str(error))
                idle = None
            else:
                break
        client.mails += 1
        if any(result.outcomes):
            client.close()  # after a refusal it may not be as good as new
        else:
            self._keep(client)
        return result

    async def open(self, server: Server) -> Client:
        """A new connection, greeted and, as the settings want it, encrypted. Raises Gone."""
        client = await Client.connect(server, self._timeouts)
        try:
            await self._greeted(client)
            await self._hello(client)
            if self._wants_tls(client.peer_host):
                await self._secure(client)
        except BaseException:
            client.close()
            raise
        return client

    async def close(self) -> None:
        """Says goodbye on all idle connections, and keeps none from now on."""
        self._closed = True
        idle = [client for server in list(self._idle) for client in self._idle.pop(server)]
        for client in idle:
            _wake(client).close()
        await asyncio.gather(*(client.closed(GOODBYE_S) for client in idle))

    # One connection.

    async def _greeted(self, client: Client) -> None:
        greeting = await client.reply("greeting")
        if greeting.code != 220:
            raise Gone(f"next hop {client.server}: greeting: {greeting}")

    async def _hello(self, client: Client) -> None:
        verb = b"LHLO" if client.server.protocol == "lmtp" else b"EHLO"
        reply = await client.command(verb.decode(), verb + b" " + self._hostname)
        if reply.code >= 500 and verb == b"EHLO":
            verb = b"HELO"
            reply = await client.command("HELO", b"HELO " + self._hostname)
        if not reply.positive:
            raise Gone(f"next hop {client.server}: {verb.decode()}: {reply}")
        offered = [line.partition(" ") for line in reply.lines[1:]] if verb != b"HELO" else []
        client.extensions = {name.upper(): parameters for name, _, parameters in offered}

    def _wants_tls(self, host: str) -> bool:
        """Whether STARTTLS is asked for where it is offered; `host` is the IP address there, "" for a Unix socket."""
        if self._tls_mode == "none" or not host:
            return False
        return self._tls_mode != "auto" or not ipaddress.ip_address(host.partition("%")[0]).is_loopback

    async def _secure(self, client: Client) -> None:
        offered = "STARTTLS" in client.extensions
        reply = await client.command("STARTTLS", b"STARTTLS") if offered else None
        if reply is not None and reply.code == 220:
            await client.start_tls(self._tls_context, self._tls_name or client.server.host)
            await self._hello(client)
        elif self._tls_mode == "required":
            said = reply or "it offers none"
            raise Gone(f"next hop {client.server}: next_hop_tls requires TLS: {said}")

    # Those that are idle.

    def _take(self, server: Server) -> Client | None:
        """The connection that was used last: others may so come to the end of their time."""
        idle = self._idle.get(server, [])
        while idle:
            client = _wake(idle.pop())
            if client.usable:
                return client
        return None

    def _keep(self, client: Client) -> None:
        loop = asyncio.get_running_loop()
        idle = self._idle.setdefault(client.server, [])
        for dead in [each for each in idle if not each.usable]:
            idle.remove(_wake(dead))
        worn = client.mails >= MAILS or loop.time() - client.opened >= AGE_S
        if self._closed or worn or len(idle) >= self._most:
            client.close()
            return
        idle.append(client)
        client.expiry = loop.call_later(IDLE_S, self._expire, client)

    def _expire(self, client: Client) -> None:
        self._idle[client.server].remove(client)
        client.close()


def _wake(client: Client) -> Client:
    """The connection, idle no more."""
    if client.expiry is not None:
        client.expiry.cancel()
    return client


def _context(ca: Path | str, *, verify: bool) -> ssl.SSLContext:
    """`ca` is a file of CA certificates, or a word for the system's. Raises ConfigError."""
    try:
        if isinstance(ca, Path):
            context = ssl.create_default_context(cafile=ca)
        else:  # the system's take milliseconds to read
            context = ssl.create_default_context() if verify else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    except OSError as error:
        raise ConfigError(f"next_hop_ca: {ca} cannot be used as CA certificates: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
