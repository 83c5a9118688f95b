"""The development KMEs as a new site's KME: our SAE ID, certificates and address.
SAE 2 is at KM1 and SAE 1 at KM2 (relay/kme); the second site takes the ID that its peer lacks.
"""

from __future__ import annotations

from pathlib import Path

from relay.errors import ConfigError
from relay.files.rights import as_owner_of
from relay.keys.development import default_state_dir, endpoints
from relay.kme.certificates import prepare
from relay.setup.answers import KMEAccess

SAES = ("2", "1")
"""SAE IDs of the first and the second site."""


def sae_beside(peer_sae: str | None) -> str:
    """Our SAE ID beside a peer with this one (None: no peer yet). Raises ConfigError."""
    if peer_sae is None:
        return SAES[0]
    if peer_sae not in SAES:
        raise ConfigError(f"the peer's SAE is {peer_sae!r}, and the development KMEs know none but 1 and 2")
    return SAES[1 - SAES.index(peer_sae)]


def development_kme(sae_id: str, group: str, state: Path | None = None) -> KMEAccess:
    """This SAE's access to its development KME; creates missing certificates. Raises ConfigError."""
    if sae_id not in SAES:
        raise ConfigError(f"the development KMEs know the SAE IDs 1 and 2, and no {sae_id!r}")
    state = state or default_state_dir()
    with as_owner_of(state):
        prepare(state, "localhost")
        url = endpoints(state)[SAES.index(sae_id)]
    ca, certificate, key = (state / name for name in ("ca.pem", f"sae-{sae_id}.pem", f"sae-{sae_id}.key"))
    return KMEAccess(url, ca, certificate, key, group)
