"""Level aes: AES-256-GCM under a fresh content key, wrapped under one quantum key of both sites.
Standard: RFC 5083 and RFC 5084 (AuthEnvelopedData, AES-GCM), RFC 5652 6.2.3 (KEK), RFC 3394 (key wrap).
"""

from __future__ import annotations

from relay import levels
from relay.config import Config
from relay.formats import cms
from relay.schemes import content_key
from relay.schemes.content_key import SingleKeyScheme


class AES(SingleKeyScheme, level=levels.AES):
    """AES-256-GCM with quantum keys; also the layer added by quantum enhancement."""

    content = cms.GCMContent
    encrypt = staticmethod(content_key.encrypt)
    decrypt = staticmethod(content_key.decrypt)


def scheme(_: Config | None = None) -> AES:
    """The scheme for all_schemes."""
    return AES()
