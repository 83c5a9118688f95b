"""Whose the peers' domains were, for the workers of one relay: one that starts anew must not forget a former peer.
Standard: a JSON file, replaced whole; it counts for the relay that wrote it, until that is started anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import structlog

from relay.files import write_whole
from relay.files.stamps import read_regular

log = structlog.get_logger(__name__)

Domains = Mapping[str, tuple[str, ...]]
"""Mail domains by the name of their peer."""


class FormerPeers:
    """The file, as the processes of one relay share it; both methods block."""

    def __init__(self, file: Path, relay: str) -> None:
        """`relay` is what its processes have in common, and no other relay has: the name of their board."""
        self._file, self._relay = file, relay

    def read(self) -> Domains:
        """What another process of this relay knew last; nothing where there was none."""
        try:
            said = json.loads(read_regular(self._file))
            if said["relay"] == self._relay:
                return {str(name): tuple(map(str, domains)) for name, domains in said["domains"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        return {}

    def write(self, domains: Domains) -> None:
        """Keeps them; where that cannot be, the log says so, and the processes that know them go on."""
        try:
            write_whole(self._file, json.dumps({"relay": self._relay, "domains": domains}))
        except OSError as error:
            log.warning("peers_not_kept", file=str(self._file), cause=error.strerror)
