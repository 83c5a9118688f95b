"""When and how a connection to a next hop is encrypted.
Standard: RFC 3207 (STARTTLS), RFC 7435 (opportunistic: where offered, unverified), RFC 8996 (TLS 1.2 at least).
"""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path

from relay.config import DirectionSettings, Server
from relay.errors import ConfigError
from relay.forward.channel import Channel


class TLS:
    """The TLS settings of one direction, its certificates read."""

    def __init__(self, direction: DirectionSettings) -> None:
        """Raises ConfigError where `next_hop_ca` cannot be used."""
        self._mode = direction.next_hop_tls
        self._name = direction.next_hop_tls_name
        ca = direction.next_hop_ca
        self._context = _context(ca if isinstance(ca, Path) else None, verify=self.required)

    @property
    def required(self) -> bool:
        """Whether nothing may leave without TLS to the server that its certificate names."""
        return self._mode == "required"

    def wanted(self, channel: Channel) -> bool:
        """Whether STARTTLS is asked for where it is offered."""
        host = channel.peer_host
        if self._mode == "none" or not host:
            return False
        return self._mode != "auto" or not ipaddress.ip_address(host.partition("%")[0]).is_loopback

    async def start(self, channel: Channel, server: Server, seconds: float) -> None:
        """The handshake, after the 220 to STARTTLS. Raises ChannelLost: from here on there is no way back to clear."""
        await channel.start_tls(self._context, self._name or server.host, seconds)


def _context(ca: Path | None, *, verify: bool) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise ConfigError(f"next_hop_ca: {ca} cannot be used as CA certificates: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
