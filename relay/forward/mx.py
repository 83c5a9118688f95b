"""Looks up the mail exchangers of a domain, in the order in which they are tried.
Standard: RFC 5321 5.1 (MX records, ourselves among them), RFC 7505 (null MX).
"""

from __future__ import annotations

import random

import dns.asyncresolver
import dns.exception
import dns.name
import dns.resolver
from dns.rdtypes.ANY.MX import MX

from relay.config import MailDomain, Server, TCPAddress
from relay.errors import NextHopRefused
from relay.forward.client import NotTaken

LIFETIME_S = 10.0
"""Timeout of a DNS query, in seconds."""
MOST_SERVERS = 8
"""Maximum number of addresses tried, however many the domain has."""


class MailExchangers:
    """Looks up MX records; answers are cached for their TTL."""

    def __init__(self, hostname: str, resolver: dns.asyncresolver.Resolver | None = None) -> None:
        """`hostname` is our own; the default resolver is that of /etc/resolv.conf."""
        self._hostname = hostname
        self._resolver = resolver

    async def servers(self, domain: MailDomain) -> list[Server]:
        """The addresses of the domain's mail exchangers, most preferred first, in random order among equals.

        Raises NotTaken if there are none now, NextHopRefused if the domain accepts no mail.
        """
        names = await self._exchangers(domain)
        servers: list[Server] = []
        for name in names[:MOST_SERVERS]:
            host = name.to_text(omit_final_dot=True)
            servers += [
                Server("smtp", TCPAddress(address, domain.port), host) for address in await self._addresses(name)
            ]
        if not servers:
            raise NotTaken(f"next hop {domain}: no mail exchanger has an address")
        return servers[:MOST_SERVERS]

    async def _exchangers(self, domain: MailDomain) -> list[dns.name.Name]:
        try:
            name, own = dns.name.from_text(domain.domain), dns.name.from_text(self._hostname)
            answer = await self._dns.resolve(name, "MX", raise_on_no_answer=False, lifetime=LIFETIME_S)
        except dns.exception.DNSException as error:
            raise NotTaken(f"next hop {domain}: {type(error).__name__}: {error}") from error
        records = [record for record in answer if isinstance(record, MX)]
        if not records:
            return [name]  # the implicit MX
        if all(record.exchange == dns.name.root for record in records):
            raise NextHopRefused(f"next hop {domain}: the domain takes no mail (null MX)", "5.1.10")
        ours = min((record.preference for record in records if record.exchange == own), default=65536)
        random.shuffle(records)
        better = sorted((each for each in records if each.preference < ours), key=lambda record: record.preference)
        if not better:
            raise NotTaken(f"next hop {domain}: this relay is itself the most preferred mail exchanger")
        return [record.exchange for record in better if record.exchange != dns.name.root]

    async def _addresses(self, host: dns.name.Name) -> list[str]:
        """The host's IP addresses; empty if there are none, or the query fails."""
        try:
            answers = await self._dns.resolve_name(host, lifetime=LIFETIME_S)
        except dns.exception.DNSException:
            return []
        return list(answers.addresses())

    @property
    def _dns(self) -> dns.asyncresolver.Resolver:
        if self._resolver is None:
            self._resolver = dns.asyncresolver.Resolver()
            self._resolver.cache = dns.resolver.LRUCache(1000)
        return self._resolver
