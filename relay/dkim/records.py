"""Fetches key records from the DNS, all those of a message at once and within one short time.
Standard: RFC 6376 3.6.2 (TXT records); what the DNS does not tell now is trouble, never an answer.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Collection, Mapping, Sequence

import dns.asyncresolver
import dns.name
import dns.nameserver
import dns.resolver
import structlog
from dns.rdtypes.ANY.TXT import TXT

from relay.config import TCPAddress

log = structlog.get_logger(__name__)

Answers = Mapping[str, list[bytes] | None]
"""The TXT records of each name: none are an empty list, None is trouble."""

DNS_TIMEOUT_S = 5.0
"""The longest wait for all records of a message: what is not there by then is a temperror, and the mail goes on."""

CACHED_NAMES = 1000
"""Answers are kept as long as the DNS lets them be, so many of them at most."""


class KeyRecords:
    """Looks up TXT records."""

    def __init__(self, servers: Sequence[TCPAddress] = (), timeout: float = DNS_TIMEOUT_S) -> None:
        """`servers` are asked instead of /etc/resolv.conf's; `timeout` is in seconds, for all records of a message."""
        self._timeout = timeout
        self._servers = servers
        self._resolver: dns.asyncresolver.Resolver | None = None

    async def of(self, names: Collection[str]) -> Answers:
        """What the DNS says of each name."""
        unique = list(dict.fromkeys(names))
        return dict(zip(unique, await asyncio.gather(*map(self._texts, unique)), strict=True))

    async def _texts(self, name: str) -> list[bytes] | None:
        try:
            answer = await self._dns().resolve(
                dns.name.from_text(name), "TXT", raise_on_no_answer=False, lifetime=self._timeout
            )
        except (dns.resolver.NXDOMAIN, dns.name.LabelTooLong, dns.name.NameTooLong, dns.name.EmptyLabel):
            return []
        except Exception as error:  # noqa: BLE001 - whatever a name server sends, the mail goes on
            log.info("dns_trouble", name=name, kind=type(error).__name__)
            return None
        return [b"".join(record.strings) for record in answer if isinstance(record, TXT)]

    def _dns(self) -> dns.asyncresolver.Resolver:
        if self._resolver is None:
            self._resolver = dns.asyncresolver.Resolver(configure=not self._servers)
            if self._servers:
                self._resolver.nameservers = [
                    dns.nameserver.Do53Nameserver(str(ipaddress.ip_address(server.host)), server.port)
                    for server in self._servers
                ]
            self._resolver.cache = dns.resolver.LRUCache(CACHED_NAMES)
        return self._resolver
