"""Makes a site's keys and asks an organisation's CA to certify them.
Standard: PKCS#10 (RFC 2986) for the three keys that can sign; a bare public key for ML-KEM, which cannot.

A PKCS#10 request proves with a signature that the asker has the private key. An ML-KEM key cannot sign, and the
statement of possession of RFC 9883 needs a CA that knows it. So the CA gets the public key and the extensions that its
certificate has to have, and takes the site's word for it. A false word would harm the site alone, which could not
open what is sealed for it. The certificate of the CA itself, `ca.pem`, is put beside the others; it may be an
intermediate one, and it is what peers pin together with our ML-DSA key.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from relay.errors import ConfigError
from relay.keys.identity import files
from relay.keys.identity.layout import ca_stem
from relay.keys.identity.load import load_identity
from relay.keys.identity.maker import Maker, Progress
from relay.keys.identity.pairs import Identity, PrivateKey, Role


def request_certificates(
    directory: Path,
    *,
    name: str,
    domains: Sequence[str],
    passphrase: Path | None = None,
    renew: bool = False,
    now: datetime | None = None,
    progress: Progress = lambda what: None,
) -> list[Path]:
    """Makes what is missing of the four keys and gives the files that the organisation's CA needs.

    With `renew` the encryption keys are made anew and all four are requested again; what is in use stays in use
    until the new certificates are there. A second call repeats the same requests. Raises ConfigError.
    """
    maker = Maker(directory, name, domains, 0, passphrase, now, progress)
    before = load_identity(directory, passphrase=passphrase, now=now) if renew else None
    with files.changing(directory):
        if ca_stem(directory).key.exists():
            raise ConfigError(f"{directory}: this identity has its own CA (ca.key); request another one elsewhere")
        requested: list[Path] = []
        for role in Role:
            if (key := _key_to_certify(maker, role, before)) is not None:
                requested += maker.request(role, key)
    if not requested:
        raise ConfigError(f"{directory}: all certificates are here; --renew asks for new ones")
    return requested


def _key_to_certify(maker: Maker, role: Role, before: Identity | None) -> PrivateKey | None:
    if waiting := maker.waiting_key(role):
        return waiting
    if before is not None and role is Role.SIGNING:
        return before.signing.private_key
    if before is not None and role is Role.RSA_SIGNING:
        return before.rsa_signing.private_key
    if before is not None or not maker.has_certificate(role):
        return maker.new_key(role)
    return None
