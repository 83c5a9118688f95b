"""Fetches the key records of a message from the DNS, in parallel and with one short timeout, and parses the keys.
Standard: RFC 6376 3.6 and 6.1.2, RFC 8301; a DNS failure is temporary, never an answer.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import re
from collections.abc import Collection, Mapping, Sequence

import dns.asyncresolver
import dns.name
import dns.nameserver
import dns.resolver
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from dkim.util import InvalidTagValueList, parse_tag_value
from dns.rdtypes.ANY.TXT import TXT

from relay.config import TCPAddress
from relay.dkim.keys import LEAST_RSA_BITS, record_name

log = structlog.get_logger(__name__)

Answers = Mapping[str, list[bytes] | None]
"""The TXT records of each name; an empty list for none, None for a DNS failure."""

Tags = Mapping[bytes, bytes]
PublicKey = RSAPublicKey | Ed25519PublicKey

MAX_RSA_BITS = 8192
"""Maximum RSA key length, in bits; RFC 8301, 3.2 asks for 4096."""
DNS_TIMEOUT_S = 5.0
"""Timeout for all records of a message, in seconds; a missing one is then a temperror."""
CACHED_NAMES = 1000
"""Maximum number of cached DNS answers; each is kept for its TTL."""


_DOMAIN = re.compile(rb"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")


class NotPassed(Exception):
    """A signature did not pass: the result (RFC 8601, 2.7.1), and the reason."""

    def __init__(self, result: str, reason: str) -> None:
        super().__init__(reason)
        self.result = result
        self.reason = reason


class KeyRecords:
    """Looks up TXT records."""

    def __init__(self, servers: Sequence[TCPAddress] = (), timeout: float = DNS_TIMEOUT_S) -> None:
        """`servers` are used instead of /etc/resolv.conf's; `timeout` is in seconds, for all records of a message."""
        self._timeout = timeout
        self._servers = servers
        self._resolver: dns.asyncresolver.Resolver | None = None

    async def of(self, names: Collection[str]) -> Answers:
        """The TXT records of each name."""
        unique = list(dict.fromkeys(names))
        return dict(zip(unique, await asyncio.gather(*map(self._texts, unique)), strict=True))

    async def _texts(self, name: str) -> list[bytes] | None:
        try:
            answer = await self._dns().resolve(
                dns.name.from_text(name), "TXT", raise_on_no_answer=False, lifetime=self._timeout
            )
        except (dns.resolver.NXDOMAIN, dns.name.LabelTooLong, dns.name.NameTooLong, dns.name.EmptyLabel):
            return []
        except Exception as error:  # noqa: BLE001 - no reply of a name server may hold the mail
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


def key_name(tags: Tags) -> str:
    """The DNS name of the key. Raises NotPassed if d= and s= are invalid."""
    domain, selector = tags.get(b"d", b""), tags.get(b"s", b"")
    if not _DOMAIN.fullmatch(domain) or not _DOMAIN.fullmatch(selector):
        raise NotPassed("permerror", "d= or s= is not a domain")
    return record_name(domain.decode().lower(), selector.decode().lower())


def public_key(tags: Tags, answers: Answers) -> PublicKey:
    """The key in the DNS, if it may be used for these tags (RFC 6376, 6.1.2). Raises NotPassed."""
    texts = answers.get(key_name(tags))
    if texts is None:
        raise NotPassed("temperror", "the DNS did not answer")
    record = _record(texts)
    kind, _, digest = tags[b"a"].partition(b"-")
    if record.get(b"k", b"rsa") != kind:
        raise NotPassed("permerror", "the key is for another algorithm")
    if b"h" in record and digest not in _list(record[b"h"]):
        raise NotPassed("permerror", "the key is for another hash")
    if not {b"*", b"email"} & set(_list(record.get(b"s", b"*"))):
        raise NotPassed("permerror", "the key is not for mail")
    flags = _list(record.get(b"t", b""))
    if b"s" in flags and tags.get(b"i", b"@" + tags[b"d"]).rpartition(b"@")[2].lower() != tags[b"d"].lower():
        raise NotPassed("permerror", "the key is not for subdomains")
    if b"y" in flags:
        raise NotPassed("neutral", "the key is marked as being tested")
    return _load(kind, record)


def _record(texts: list[bytes]) -> dict[bytes, bytes]:
    if not texts:
        raise NotPassed("permerror", "there is no key in the DNS")
    for text in texts:
        try:
            record = dict(parse_tag_value(b" ".join(text.split())))
        except (InvalidTagValueList, IndexError):
            continue
        if record.get(b"v", b"DKIM1") == b"DKIM1" and b"p" in record:
            return record
    raise NotPassed("permerror", "what the DNS has is no key record")


def _load(kind: bytes, record: Mapping[bytes, bytes]) -> PublicKey:
    octets = octets_of(record, b"p")
    if not octets:
        raise NotPassed("permerror", "the key was revoked")
    try:
        if kind == b"ed25519":
            return Ed25519PublicKey.from_public_bytes(octets)
        key = serialization.load_der_public_key(octets)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise NotPassed("permerror", "the key cannot be read") from error
    if not isinstance(key, RSAPublicKey) or key.key_size > MAX_RSA_BITS:
        raise NotPassed("permerror", "the key is no RSA key of a usual size")
    if key.key_size < LEAST_RSA_BITS:
        raise NotPassed("fail", f"RSA key of {key.key_size} bits")
    return key


def octets_of(tags: Tags, name: bytes) -> bytes:
    """The decoded base64 of a tag. Raises NotPassed."""
    try:
        return base64.b64decode(b"".join(tags[name].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise NotPassed("permerror", f"{name.decode()}= is not base64") from error


def _list(value: bytes) -> list[bytes]:
    return [each.strip() for each in value.split(b":")]
