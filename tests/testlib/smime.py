"""S/MIME certificates as CAs issue them and as gateways name theirs, with their keys.
Standard: CA/Browser Forum S/MIME BR 7.1.2 (profiles); keys are made once for a process, since RSA takes its time.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from relay.config import TCPAddress
from relay.smime import CertificateDirectory, OwnKey
from relay.smime.own import PrivateKey
from tests.testlib.sites import Site

USAGE = dict.fromkeys(("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"), False)  # fmt: skip
BOTH = ("digital_signature", "key_encipherment", "key_agreement")


@lru_cache
def key(kind: str = "rsa", number: int = 0) -> PrivateKey:
    """A key of a kind (rsa, rsa-1024, p256, p384, p521); another one for another number."""
    if kind.startswith("rsa"):
        return rsa.generate_private_key(65537, int(kind.partition("-")[2] or 2048))
    curve = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}[kind]
    return ec.generate_private_key(curve)


@dataclass(frozen=True)
class Issuer:
    """A CA that issues certificates for mail."""

    certificate: x509.Certificate
    key: PrivateKey


def name(common_name: str, address: str = "") -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if address:
        attributes.append(x509.NameAttribute(NameOID.EMAIL_ADDRESS, address))
    return x509.Name(attributes)


@lru_cache
def ca(
    common_name: str = "Example Mail CA",
    number: int = 99,
    issuer: Issuer | None = None,
    names: x509.NameConstraints | None = None,
) -> Issuer:
    """A CA, a root unless it has an `issuer`; it may vouch for these `names` alone."""
    own = key("p256", number)
    now = datetime.now(UTC)
    signer, above = (issuer.key, issuer.certificate.subject) if issuer else (own, name(common_name))
    made = (
        x509.CertificateBuilder()
        .subject_name(name(common_name)).issuer_name(above).public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=30)).not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(**{**USAGE, "key_cert_sign": True, "crl_sign": True, "digital_signature": True}), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )  # fmt: skip
    made = made.add_extension(names, critical=True) if names else made
    return Issuer(made.sign(signer, hashes.SHA256()), own)


def certified(
    *addresses: str,
    kind: str = "rsa",
    number: int = 0,
    dns: Sequence[str] = (),
    subject: str = "",
    days: tuple[float, float] = (-1, 365),
    usage: Sequence[str] | None = BOTH,
    uses: Sequence[x509.ObjectIdentifier] | None = (ExtendedKeyUsageOID.EMAIL_PROTECTION,),
    issuer: Issuer | None = None,
    more: Sequence[x509.ExtensionType] = (),
) -> OwnKey:
    """A certificate for these addresses (rfc822Name) and `dns` names, with its key; `days` from now it begins and ends.

    `subject` is an emailAddress in the subject alone. None for `usage` or `uses`: without that extension.
    """
    own, signer, now = key(kind, number), issuer or ca(), datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(addresses[0] if addresses else "Gateway", subject))
        .issuer_name(signer.certificate.subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0])).not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()), critical=False)
    )  # fmt: skip
    if addresses or dns:
        names: list[x509.GeneralName] = [*map(x509.RFC822Name, addresses), *map(x509.DNSName, dns)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if usage is not None:
        builder = builder.add_extension(x509.KeyUsage(**USAGE | dict.fromkeys(usage, True)), critical=True)
    if uses is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    for each in more:
        builder = builder.add_extension(each, critical=False)
    return OwnKey(builder.sign(signer.key, hashes.SHA256()), own, (signer.certificate,))


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def key_pem(own: OwnKey, passphrase: bytes = b"") -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase)
    return own.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def write_secret(path: Path, content: bytes) -> Path:
    """Writes a file that only its owner can read."""
    path.touch(mode=0o600)
    path.write_bytes(content)
    return path


_RELAY_TOML = """\
[site]
name = "alice"
domains = ["alice.example"]
sae_id = "alice"
hostname = "relay.alice.example"

{directions}
[policies]
directory = "policies"

[store]
database = "relay.db"
secret = "site.secret"

[log]
format = "json"

[[smime.keys]]
certificate = "own.pem"
key = "own.key"

[smime]
certificates = "certificates"
{settings}
"""


def make_smime_site(
    directory: Path,
    *,
    outgoing: TCPAddress | None = None,
    incoming: TCPAddress | None = None,
    policies: Mapping[str, str],
    certificates: Mapping[str, OwnKey],
    own: OwnKey | None = None,
    settings: str = "",
    entries: str = 'lmtp = "127.0.0.1:0"',
) -> Site:
    """Alice's site without a KME, a peer or an identity. `certificates` are those of others, by address or domain."""
    directory.mkdir(parents=True, exist_ok=True)
    directions = "".join(
        f'[{direction}]\nlisten = "127.0.0.1:0"\n{entries}\nnext_hop = "{next_hop}"\n\n'
        for direction, next_hop in (("outgoing", outgoing), ("incoming", incoming))
        if next_hop is not None
    )
    site = Site(directory)
    site.config_file.write_text(_RELAY_TOML.format(directions=directions, settings=settings))
    site.write_policies(policies)
    own = own or certified("securemail@alice.example", number=100)
    (directory / "own.pem").write_bytes(pem(own.certificate, *own.chain))
    write_secret(directory / "own.key", key_pem(own))
    for each, theirs in certificates.items():
        CertificateDirectory(directory / "certificates").put(each, [theirs.certificate])
    return site


def opened_by_openssl(directory: Path, message: bytes, theirs: OwnKey) -> bytes:
    """The entity that OpenSSL decrypts with this key, whose signature it finds good under our CA."""
    (directory / "theirs.key").write_bytes(key_pem(theirs))
    (directory / "theirs.pem").write_bytes(pem(theirs.certificate))
    (directory / "ca.pem").write_bytes(pem(ca().certificate))
    decrypt = ["openssl", "cms", "-decrypt", "-recip", "theirs.pem", "-inkey", "theirs.key"]
    verify = ["openssl", "cms", "-verify", "-CAfile", "ca.pem", "-purpose", "smimesign", "-certsout", "signer.pem"]
    inner = subprocess.run(decrypt, input=message, capture_output=True, check=True, cwd=directory).stdout
    found = subprocess.run(verify, input=inner, capture_output=True, check=True, cwd=directory)
    assert b"Verification successful" in found.stderr
    return found.stdout
