"""A DNS server on loopback that knows what it is told, remembers what it was asked, and can fail or be silent.
Standard: RFC 1035 over UDP; the real resolver of dnspython asks it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
from dns.rdtypes.ANY.TXT import TXT

from relay.config import TCPAddress


class Zone(asyncio.DatagramProtocol):
    """Answers from `texts` (TXT by name) and `records` ("name TYPE": values).

    Unknown names do not exist, `failing` ones are SERVFAIL, `silent` ones get no answer.
    """

    def __init__(self) -> None:
        self.texts: dict[str, bytes] = {}
        self.records: dict[str, list[str]] = {}
        self.failing: set[str] = set()
        self.silent: set[str] = set()
        self.asked: list[str] = []
        self.transport: Any = None

    @property
    def address(self) -> TCPAddress:
        return TCPAddress(*self.transport.get_extra_info("sockname")[:2])

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        [question] = query.question
        name = question.name.to_text(omit_final_dot=True)
        self.asked.append(name)
        if name in self.silent:
            return
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        kind = question.rdtype.name
        if values := self.records.get(f"{name} {kind}"):
            answer.answer.append(dns.rrset.from_text(question.name, 300, "IN", kind, *values))
        elif name in self.failing:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif text := self.texts.get(name):
            strings = [text[start : start + 255] for start in range(0, len(text), 255)]
            record = TXT(question.rdclass, dns.rdatatype.TXT, strings)
            answer.answer.append(dns.rrset.from_rdata(question.name, 300, record))
        elif not any(record.startswith(f"{name} ") for record in self.records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        self.transport.sendto(answer.to_wire(max_size=65535), address)


@asynccontextmanager
async def zone_server() -> AsyncIterator[Zone]:
    """A server on a free port."""
    transport, zone = await asyncio.get_running_loop().create_datagram_endpoint(Zone, local_addr=("127.0.0.1", 0))
    try:
        yield zone
    finally:
        transport.close()
