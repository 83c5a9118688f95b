"""Makes a site's keys and certificates, under its own CA or for an organisation's CA to certify, and renews them.
Standard: PKCS#10 (RFC 2986) for the three keys that can sign; a bare public key for ML-KEM, which cannot.

An interrupted run leaves what was usable before, and the next one completes it.

A PKCS#10 request proves with a signature that the asker has the private key. An ML-KEM key cannot sign, and the
statement of possession of RFC 9883 needs a CA that knows it. So the CA gets the public key and the extensions that its
certificate has to have, and takes the site's word for it. A false word would harm the site alone, which could not
open what is sealed for it. The certificate of the CA itself, `ca.pem`, is put beside the others; it may be an
intermediate one, and it is what peers pin together with our ML-DSA key.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from relay.errors import ConfigError
from relay.identity import files, further, issue
from relay.identity.layout import ca_stem
from relay.identity.load import load_identity
from relay.identity.maker import Maker, Progress
from relay.identity.pairs import Identity, PrivateKey, Role

VALID_DAYS = 730
"""How long a certificate is valid unless something else is asked for."""


def create_identity(
    directory: Path,
    *,
    name: str,
    domains: Sequence[str],
    kems: Sequence[str] = (),
    valid_days: int = VALID_DAYS,
    passphrase: Path | None = None,
    now: datetime | None = None,
    progress: Progress = lambda what: None,
) -> Identity:
    """Makes what is missing of an identity: CA, four keys and their certificates, in `directory`.

    `domains` are in A-labels; `passphrase` is a file with which the private keys are encrypted; `kems` names
    the further KEMs that it gets keys for. An interrupted run is completed by the next one. Raises ConfigError,
    also where the identity is complete.
    """
    further.check_names(kems)
    maker = Maker(directory, name, domains, valid_days, passphrase, now, progress)
    with files.changing(directory):
        missing = [role for role in Role if not maker.has_certificate(role)]
        missing_kems = [kem for kem in dict.fromkeys(kems) if kem not in further.names_in(directory)]
        if missing or not missing_kems:
            _refuse_requested(directory)
        if not missing and not missing_kems:
            raise ConfigError(f"{directory}: the identity is complete; `qumail-relay identity new --renew` renews it")
        if missing:
            ca, ca_key = maker.ca()
            for role in missing:
                maker.certify(role, maker.waiting_key(role) or maker.new_key(role), ca, ca_key)
        for kem in missing_kems:
            maker.new_further_kem(kem)
    return load_identity(directory, passphrase=passphrase, now=now)


def renew_identity(
    directory: Path,
    *,
    name: str,
    domains: Sequence[str],
    kems: Sequence[str] = (),
    valid_days: int = VALID_DAYS,
    passphrase: Path | None = None,
    now: datetime | None = None,
    progress: Progress = lambda what: None,
) -> Identity:
    """Fresh encryption keys, and fresh certificates for all four roles, from the site's own CA.

    The signing keys and the CA's key stay, so that peers go on recognising us; the encryption keys before
    stay for opening. So it is with the further KEMs, those there are and those of `kems`. Peers need the new peer
    document before the old certificates end. Raises ConfigError.
    """
    _refuse_requested(directory)
    kems = tuple(dict.fromkeys((*further.names_in(directory), *kems)))
    further.check_names(kems)
    before = load_identity(directory, passphrase=passphrase, now=now)
    maker = Maker(directory, name, domains, valid_days, passphrase, _after(before, now), progress)
    with files.changing(directory):
        ca, ca_key = maker.renewed_ca()
        maker.certify(Role.SIGNING, before.signing.private_key, ca, ca_key)
        maker.certify(Role.RSA_SIGNING, before.rsa_signing.private_key, ca, ca_key)
        for role in (Role.KEM, Role.RSA_ENCRYPTION):
            maker.certify(role, maker.new_key(role), ca, ca_key)
        for kem in kems:
            maker.new_further_kem(kem)
    return load_identity(directory, passphrase=passphrase, now=now)


def _after(before: Identity, now: datetime | None) -> datetime:
    """A time from which on certificates are newer than those before, even if the clock went back."""
    newest = max(certificate.not_valid_before_utc for certificate in before.certificates.values())
    return max(now or datetime.now(UTC), newest + issue.CLOCK_SKEW + timedelta(seconds=1))


def _refuse_requested(directory: Path) -> None:
    if any(directory.glob("*.csr")):
        raise ConfigError(
            f"{directory}: an organisation's CA was asked for these certificates (*.csr): put them here as .pem files, "
            "renew them with --csr --renew, or use another directory to begin anew"
        )


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
