"""Makes a site's keys and certificates under its own CA, and renews them.
Standard: an interrupted run leaves what was usable before, and the next one completes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from relay.errors import ConfigError
from relay.keys.identity import files, further, issue
from relay.keys.identity.load import load_identity
from relay.keys.identity.maker import Maker, Progress
from relay.keys.identity.pairs import Identity, Role

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
