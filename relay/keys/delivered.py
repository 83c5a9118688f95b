"""A KME's reply with received keys, whole, and what it is the reply to: as it is written down before it is used.
Standard: ETSI GS QKD 014 V1.1.1, 5.4, and Cisco SKIP; what cannot be read as keys of that request gives none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

from relay.errors import KMEBadReply
from relay.keys.replies import json_body, keys_asked_for
from relay.keys.skip import key_asked_for

Interface = Literal["etsi014", "skip"]


@dataclass(frozen=True, slots=True)
class Delivered:
    """The reply's body, the KME group and interface that it came by, and the master SAE and key_IDs asked for."""

    group: str
    interface: Interface
    master_sae: str
    key_IDs: tuple[str, ...]
    body: bytes = field(repr=False)

    def encoded(self) -> bytes:
        """One record of a key spool: what `decoded` reads."""
        asked = [self.group, self.interface, self.master_sae, self.key_IDs]
        return json.dumps(asked).encode() + b"\0" + self.body

    @classmethod
    def decoded(cls, record: bytes) -> Delivered:
        """The reply again. Raises ValueError for what `encoded` has not made."""
        asked, _, body = record.partition(b"\0")
        group, interface, master_sae, key_IDs = json.loads(asked)
        return cls(group, interface, master_sae, tuple(key_IDs), body)

    def keys(self) -> dict[str, bytes]:
        """The octets by key_ID of those keys that were asked for and came."""
        try:
            if self.interface == "skip":
                keys = [key_asked_for("", self.body, key_ID) for key_ID in self.key_IDs]
                return {key.key_ID: key.key for key in keys}
            found, _ = keys_asked_for(json_body("", self.body), self.key_IDs)
        except KMEBadReply:
            return {}
        return {key_ID: key.key for key_ID, key in found.items()}
