"""Makes this site's peer document, each with a higher serial number than the one before.
The serial number is the Unix time in seconds, or one more than the last if that is higher.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from relay.errors import ConfigError
from relay.identity import files
from relay.identity.checks import valid_now
from relay.identity.document import FORMAT, write_document
from relay.identity.pairs import Identity
from relay.identity.peer import PeerCertificates

RENEW = "renew them: qumail-relay identity new --renew"
"""What helps against certificates that have expired or name too few domains."""
_SERIAL = "serial"


def peer_document(
    directory: Path,
    identity: Identity,
    *,
    name: str,
    domains: Sequence[str],
    sae_id: str,
    kme_groups: Sequence[str],
    levels: Sequence[str],
    now: datetime | None = None,
) -> bytes:
    """The signed document that peers import; `directory` is the identity's, where the serial number is kept.

    Raises ConfigError where a certificate has expired or does not name one of `domains` (in A-labels).
    """
    now = now or datetime.now(UTC)
    for role, certificate in identity.certificates.items():
        if not valid_now(certificate, now):
            raise ConfigError(f"the certificate for {role.label} is not valid now; {RENEW}")
        if missing := set(domains) - set(identity.domains):
            raise ConfigError(f"the certificates do not name {', '.join(sorted(missing))}; {RENEW}")
    with files.changing(directory):
        serial = _next_serial(directory / _SERIAL, now)
    peer = PeerCertificates(
        name=name,
        domains=tuple(domains),
        sae_id=sae_id,
        kme_groups=tuple(kme_groups),
        levels=tuple(levels),
        format=FORMAT,
        serial=serial,
        issued=now,
        ca=identity.ca,
        signing=identity.signing.certificate,
        kem=identity.kem.certificate,
        rsa_encryption=identity.rsa_encryption.certificate,
        rsa_signing=identity.rsa_signing.certificate,
        further_kems=identity.offered_kems,
    )
    return write_document(peer, identity.signing.private_key)


def _next_serial(path: Path, now: datetime) -> int:
    """A number above all before it, written down before it is used."""
    try:
        last = int(files.read_public(path)) if path.exists() else 0
    except ValueError as error:
        raise ConfigError(f"{path}: not a number") from error
    serial = max(last + 1, int(now.timestamp()))
    files.write(path, b"%d\n" % serial)
    return serial
