"""An identity's keys and certificates: made, read, renewed, requested from another CA, and never half there.
Standard: RFC 5280 and the drafts of composite keys; OpenSSL reads what it can, and verifies each half of a signature.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypedDict

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa as rsa_keys
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from relay.errors import AnothersFile, ConfigError
from relay.files.rights import as_owner_of
from relay.formats.cms import der
from relay.identity import (
    certificates,
    create_identity,
    files,
    load_identity,
    renew_identity,
    request_certificates,
    valid_now,
)
from relay.identity.composite import CompositeSigningPublicKey, from_public_info
from relay.identity.pairs import Role
from relay.identity.x509_keys import certified, check_issued_by, identifier_of, key_of
from tests.unit.identity.homes import NOW, Home, copy_rsa_keys, make_home


class Arguments(TypedDict):
    """What every function that makes keys is told."""

    name: str
    domains: list[str]
    now: datetime


ARGUMENTS = Arguments(name="alice", domains=["alice.example"], now=NOW)


def openssl(*arguments: str | Path, directory: Path | None = None) -> str:
    """Standard output of OpenSSL, which must succeed."""
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False, cwd=directory)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_new_identity_has_everything_and_only_its_owner_may_read_it(rsa: Path) -> None:
    identity = load_identity(rsa, now=NOW)
    assert identity.domains == ("first.example",)
    assert identity.older == ()
    pairs = (identity.kem, identity.signing, identity.rsa_encryption, identity.rsa_signing)
    for pair in pairs:
        assert pair.private_key.public_key() == key_of(pair.certificate)
        assert len(pair.ski) == 20
        assert valid_now(pair.certificate, NOW)
    assert len({pair.ski for pair in pairs}) == 4
    assert identity.rsa_encryption.private_key.key_size == 4096
    assert stat.S_IMODE(rsa.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in rsa.iterdir()} == {0o600}


@pytest.mark.parametrize(
    ("pattern", "usage", "algorithm"),
    [
        ("kem.*.pem", "Key Encipherment", "1.3.6.1.5.5.7.6.63"),
        ("signing.*.pem", "Digital Signature", "1.3.6.1.5.5.7.6.49"),
        ("rsa_encryption.*.pem", "Key Encipherment", "rsaEncryption"),
        ("rsa_signing.*.pem", "Digital Signature", "rsaEncryption"),
    ],
)
def test_openssl_reads_the_certificates_and_verifies_both_signatures_of_the_ca(
    rsa: Path, pattern: str, usage: str, algorithm: str, tmp_path: Path
) -> None:
    [path] = rsa.glob(pattern)
    for each in (path, rsa / "ca.pem"):
        _verified_by_openssl(each, rsa / "ca.pem", tmp_path)
    lines = [line.strip() for line in openssl("x509", "-in", path, "-noout", "-text").splitlines()]
    assert lines[lines.index("X509v3 Key Usage: critical") + 1] == usage
    assert lines[lines.index("X509v3 Basic Constraints: critical") + 1] == "CA:FALSE"
    assert "DNS:first.example" in lines
    assert f"Public Key Algorithm: {algorithm}" in lines
    assert "Signature Algorithm: 1.3.6.1.5.5.7.6.49" in lines
    assert "X509v3 Authority Key Identifier:" in lines


def _verified_by_openssl(path: Path, ca: Path, directory: Path) -> None:
    """OpenSSL 3.5 has no composite signatures, so it is asked for each half, over what the draft says they sign."""
    certificate, key = (x509.load_pem_x509_certificate(each.read_bytes()) for each in (path, ca))
    label = b"COMPSIG-MLDSA87-ECDSA-P384-SHA512"
    digest = hashlib.sha512(certificate.tbs_certificate_bytes).digest()
    (directory / "message").write_bytes(b"CompositeAlgorithmSignatures2025" + label + b"\0" + digest)
    public, lattice = key_of(key), certificate.signature[:4627]
    assert isinstance(public, CompositeSigningPublicKey)
    first, second = public.halves
    for name, half, signature in (("lattice", first, lattice), ("curve", second, certificate.signature[4627:])):
        pem = half.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (directory / name).write_bytes(pem)
        (directory / f"{name}.sig").write_bytes(signature)
    openssl("pkeyutl", "-verify", "-rawin", "-in", "message", "-pubin", "-inkey", "lattice", "-sigfile", "lattice.sig",
            "-pkeyopt", f"context-string:{label.decode()}", directory=directory)  # fmt: skip
    openssl("dgst", "-sha384", "-verify", "curve", "-signature", "curve.sig", "message", directory=directory)


def test_openssl_reads_both_halves_of_a_private_key_the_lattice_one_as_a_seed(rsa: Path, tmp_path: Path) -> None:
    for path in rsa.glob("*.key"):
        openssl("pkey", "-in", path, "-noout")
    [kem] = rsa.glob("kem.*.key")
    lattice, curve = kem.read_text().split("-----BEGIN PRIVATE KEY-----")[1:]
    assert "seed:" in openssl("pkey", "-in", kem, "-noout", "-text")
    (tmp_path / "curve").write_text("-----BEGIN PRIVATE KEY-----" + curve)
    assert "secp384r1" in openssl("pkey", "-in", tmp_path / "curve", "-noout", "-text")
    assert lattice != curve


def test_a_key_of_an_earlier_release_is_never_used_alone_and_the_error_says_what_to_type(alice: Home) -> None:
    """Half of the key would open what is sealed for both; the mail is held until there is a hybrid identity."""
    path = alice.path("kem.*.key")
    path.write_text(
        path.read_text().split("-----BEGIN PRIVATE KEY-----\n", 2)[1].join(("-----BEGIN PRIVATE KEY-----\n", ""))
    )
    with pytest.raises(
        ConfigError, match=r"without the half of P-384.*`qumail-relay identity new`.*`qumail-relay identity export`"
    ):
        load_identity(alice.identity_directory)
    with pytest.raises(ConfigError, match="without the half of P-384"):
        renew_identity(alice.identity_directory, **ARGUMENTS)


@pytest.mark.parametrize("order", [(1, 0), (0, 0), (1, 1), (0, 1, 1)], ids=str)
def test_a_key_whose_halves_are_not_one_of_each_kind_in_their_order_is_refused(
    alice: Home, order: tuple[int, ...]
) -> None:
    path = alice.path("signing.*.key")
    halves = [
        "-----BEGIN PRIVATE KEY-----" + each for each in path.read_text().split("-----BEGIN PRIVATE KEY-----")[1:]
    ]
    path.write_text("".join(halves[each] for each in order))
    with pytest.raises(ConfigError, match="not a key for this role"):
        load_identity(alice.identity_directory)


@pytest.mark.promise("Private keys of the identity are encrypted where there is a `passphrase`")
def test_keys_are_encrypted_where_there_is_a_passphrase(rsa: Path, tmp_path: Path) -> None:
    passphrase = tmp_path / "passphrase"
    passphrase.write_bytes(b"correct horse battery staple, in 128 bits\n")
    passphrase.chmod(0o600)
    copy_rsa_keys(rsa, tmp_path / "id")
    create_identity(tmp_path / "id", passphrase=passphrase, **ARGUMENTS)
    [kem] = (tmp_path / "id").glob("kem.*.key")
    assert kem.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    openssl("pkey", "-in", kem, "-passin", f"file:{passphrase}", "-noout")
    assert load_identity(tmp_path / "id", passphrase=passphrase, now=NOW).kem.private_key
    with pytest.raises(ConfigError, match="no passphrase is set"):
        load_identity(tmp_path / "id", now=NOW)
    passphrase.write_bytes(b"another one of sufficient length\n")
    with pytest.raises(ConfigError, match="the passphrase is another one"):
        load_identity(tmp_path / "id", passphrase=passphrase, now=NOW)


@pytest.mark.parametrize(
    ("content", "mode", "expected"),
    [(b"short\n", 0o600, "too short"), (b"x" * 40, 0o640, "lets others read"), (None, 0, "No such file")],
)
def test_a_doubtful_passphrase_file_is_refused(alice: Home, content: bytes | None, mode: int, expected: str) -> None:
    path = alice.directory / "passphrase"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(ConfigError, match=expected):
        load_identity(alice.identity_directory, passphrase=path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_private_key_that_others_may_touch_is_refused(alice: Home, mode: int) -> None:
    alice.path("kem.*.key").chmod(mode)
    with pytest.raises(ConfigError, match=r"kem\..*\.key: mode 0.* chmod 600"):
        load_identity(alice.identity_directory)


def test_a_directory_or_certificate_that_others_may_write_is_refused(alice: Home) -> None:
    alice.identity_directory.chmod(0o770)
    with pytest.raises(ConfigError, match="others can write to this directory"):
        load_identity(alice.identity_directory)
    alice.identity_directory.chmod(0o700)
    alice.path("ca.pem").chmod(0o664)
    with pytest.raises(ConfigError, match=r"ca\.pem: mode 0664 lets others write it"):
        load_identity(alice.identity_directory)


def test_the_ca_key_may_be_kept_elsewhere(alice: Home) -> None:
    alice.path("ca.key").unlink()
    assert alice.identity.kem
    with pytest.raises(ConfigError, match="put the CA's private key back"):
        renew_identity(alice.identity_directory, **ARGUMENTS)


def test_a_complete_identity_is_not_made_anew(alice: Home) -> None:
    before = {path.name: path.read_bytes() for path in alice.identity_directory.iterdir()}
    with pytest.raises(ConfigError, match="complete"):
        create_identity(alice.identity_directory, **ARGUMENTS)
    assert {path.name: path.read_bytes() for path in alice.identity_directory.iterdir()} == before


@pytest.mark.parametrize("missing", ["ca.pem", "kem.*.pem", "kem.*.key", "rsa_signing.*.pem"])
def test_what_is_missing_is_named(alice: Home, missing: str) -> None:
    alice.path(missing).unlink()
    with pytest.raises(ConfigError, match=r"missing|no key for ML-KEM"):
        load_identity(alice.identity_directory)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: No such file"):
        load_identity(tmp_path / "nowhere")


@pytest.mark.parametrize("file", ["kem.*.pem", "kem.*.key", "ca.pem"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 100, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END"])
def test_a_damaged_file_is_named_without_its_content(alice: Home, file: str, content: bytes) -> None:
    path = alice.path(file)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=path.name) as caught:
        load_identity(alice.identity_directory)
    assert "garbage" not in str(caught.value)


def test_a_key_of_another_kind_or_of_another_certificate_is_refused(alice: Home, bob: Home) -> None:
    shutil.copy2(alice.path("signing.*.key"), path := alice.path("kem.*.key"))
    with pytest.raises(ConfigError, match="not a key for this role"):
        load_identity(alice.identity_directory)
    shutil.copy2(bob.path("kem.*.key"), path)
    with pytest.raises(ConfigError, match="the certificate of another key"):
        load_identity(alice.identity_directory)


def test_an_rsa_key_of_2048_bits_is_refused(alice: Home) -> None:
    key = rsa_keys.generate_private_key(65537, 2048)
    alice.path("rsa_signing.*.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ConfigError, match="not a key for this role"):
        load_identity(alice.identity_directory)


def test_an_rsa_key_whose_parts_do_not_belong_together_is_refused(alice: Home, spare: Path) -> None:
    path = alice.path("rsa_signing.*.key")
    ours, other = (load_pem_private_key(each.read_bytes(), None) for each in (path, spare))
    assert isinstance(ours, rsa_keys.RSAPrivateKey)
    assert isinstance(other, rsa_keys.RSAPrivateKey)
    mine, theirs = ours.private_numbers(), other.private_numbers()
    mixed = rsa_keys.RSAPrivateNumbers(
        mine.p, mine.q, theirs.d, theirs.dmp1, theirs.dmq1, theirs.iqmp, mine.public_numbers
    ).private_key(unsafe_skip_rsa_key_validation=True)
    path.write_bytes(mixed.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ConfigError, match="not a key for this role"):
        load_identity(alice.identity_directory)


def test_a_certificate_of_another_ca_is_refused(alice: Home, bob: Home) -> None:
    shutil.copy2(bob.path("ca.pem"), alice.path("ca.pem"))
    with pytest.raises(ConfigError, match="the site's CA certificate did not issue it"):
        load_identity(alice.identity_directory)


@pytest.mark.parametrize("domains", [[], ["bücher.example"], ["a b"], ["-" * 64 + ".example"], ["A.example"]])
def test_domains_that_a_certificate_cannot_name_are_refused(tmp_path: Path, domains: list[str]) -> None:
    with pytest.raises(ConfigError, match="domain"):
        create_identity(tmp_path / "id", name="alice", domains=domains)


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 65])
def test_a_name_that_a_certificate_cannot_carry_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"not a name|no certificate can be made|cannot carry"):
        create_identity(tmp_path / "id", name=name, domains=["alice.example"])


@pytest.mark.usefixtures("spare_is_made")
def test_renewal_changes_encryption_keys_and_keeps_what_peers_recognise_us_by(alice: Home) -> None:
    before = alice.identity
    progress: list[str] = []
    later = NOW + timedelta(days=1)
    after = renew_identity(
        alice.identity_directory, name="alice", domains=["alice.example", "a.example"], now=later,
        progress=progress.append,
    )  # fmt: skip
    assert progress == ["ML-KEM-1024 and P-384 encryption", "RSA-4096 encryption"]
    assert after.kem.ski != before.kem.ski
    assert [pair.ski for pair in after.older_kem] == [before.kem.ski]
    assert [pair.ski for pair in after.older_rsa_encryption] == [before.rsa_encryption.ski]
    assert after.signing.ski == before.signing.ski
    assert after.signing.certificate != before.signing.certificate
    assert after.fingerprint_for(before.domains) == before.fingerprint != after.fingerprint
    assert after.domains == ("alice.example", "a.example")


@pytest.mark.usefixtures("spare_is_made")
@pytest.mark.parametrize("seconds", [0, -1000])
def test_renewal_at_once_or_with_a_clock_that_went_back_counts_all_the_same(alice: Home, seconds: int) -> None:
    before = alice.identity
    renew_identity(alice.identity_directory, name="alice", domains=["a.example"], now=NOW + timedelta(seconds=seconds))
    after = load_identity(alice.identity_directory, now=NOW)
    assert after.kem.ski != before.kem.ski
    assert after.rsa_encryption.ski != before.rsa_encryption.ski
    assert after.domains == ("a.example",)


@pytest.mark.usefixtures("spare_is_made")
def test_renewal_lengthens_the_cas_certificate_when_it_would_end_first(alice: Home) -> None:
    before = alice.identity
    later = NOW + timedelta(days=3600)
    after = renew_identity(alice.identity_directory, name="another name", domains=["alice.example"], now=later)
    assert after.ca.not_valid_after_utc > later + timedelta(days=730)
    assert key_of(after.ca) == key_of(before.ca)
    check_issued_by(after.kem.certificate, after.ca)


def test_a_certificate_is_never_valid_longer_than_the_ca(rsa: Path, tmp_path: Path) -> None:
    home = make_home(tmp_path / "a", "a", rsa, days=9999)
    assert home.identity.kem.certificate.not_valid_after_utc == home.identity.ca.not_valid_after_utc


@pytest.mark.usefixtures("spare_is_made")
def test_the_newest_pair_that_is_valid_is_in_use(alice: Home) -> None:
    before = alice.identity
    ahead = NOW + timedelta(days=100)
    renew_identity(alice.identity_directory, name="alice", domains=["alice.example"], now=ahead)
    assert load_identity(alice.identity_directory, now=NOW).kem.ski == before.kem.ski
    assert load_identity(alice.identity_directory, now=ahead).kem.ski != before.kem.ski


def test_an_expired_identity_still_loads(alice: Home) -> None:
    later = NOW + timedelta(days=800)
    assert not valid_now(load_identity(alice.identity_directory, now=later).kem.certificate, later)


KILLED = """
# Runs a function in copies of a directory, each killed one fsync later, until one is not killed.
import itertools, os, shutil, signal, sys
from pathlib import Path
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from relay.identity import create_identity, make, renew_identity

made, original, copies = globals()[sys.argv[1]], Path(sys.argv[2]), Path(sys.argv[3])
key = load_pem_private_key(Path(sys.argv[4]).read_bytes(), None)
make.rsa.generate_private_key = lambda **_: key
fsync = os.fsync

for step in itertools.count(1):
    shutil.copytree(original, copies / str(step))
    if not (child := os.fork()):
        steps = itertools.count(1)
        def killed(descriptor):
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)
        os.fsync = killed
        made(copies / str(step), name="alice", domains=["alice.example"])
        os._exit(0)
    if os.waitpid(child, 0)[1] != signal.SIGKILL:
        break
"""


def killed_copies(function: str, original: Path, copies: Path, key: Path) -> list[Path]:
    """Copies of an identity in which a function was killed at its first, second ... step; the last was not."""
    copies.mkdir()
    subprocess.run([sys.executable, "-c", KILLED, function, original, copies, key], check=True)
    return sorted(copies.iterdir(), key=lambda path: int(path.name))


def test_whenever_making_is_killed_the_next_run_completes_it(rsa: Path, spare: Path, tmp_path: Path) -> None:
    copy_rsa_keys(rsa, tmp_path / "keys")
    *killed, almost, whole = killed_copies("create_identity", tmp_path / "keys", tmp_path / "copies", spare)
    assert len(killed) > 10
    for directory in killed:
        with pytest.raises(ConfigError):
            load_identity(directory)
        assert create_identity(directory, **ARGUMENTS).kem
        assert not list(directory.glob(".*")), "half-written files are gone"
    assert load_identity(almost)
    assert load_identity(whole)


def test_whenever_renewal_is_killed_the_identity_works_and_opens_what_it_did(
    alice: Home, spare: Path, tmp_path: Path
) -> None:
    before = alice.identity
    copies = killed_copies("renew_identity", alice.identity_directory, tmp_path / "copies", spare)
    assert len(copies) > 10
    for directory in copies:
        identity = load_identity(directory)
        assert before.kem.ski in {pair.ski for pair in (identity.kem, *identity.older_kem)}
        rsa_pairs = (identity.rsa_encryption, *identity.older_rsa_encryption)
        assert before.rsa_encryption.ski in {pair.ski for pair in rsa_pairs}
        assert identity.fingerprint == before.fingerprint
    assert identity.kem.ski != before.kem.ski


@pytest.mark.usefixtures("spare_is_made")
def test_an_organisations_ca_certifies_the_keys(rsa: Path, tmp_path: Path) -> None:
    directory = tmp_path / "id"
    copy_rsa_keys(rsa, directory)
    requested = request_certificates(directory, **ARGUMENTS)
    assert requested == request_certificates(directory, **ARGUMENTS), "asking again asks for the same"
    with pytest.raises(ConfigError, match=r"ca\.pem: missing; put the certificate of the organisation's CA here"):
        load_identity(directory)
    with pytest.raises(ConfigError, match="an organisation's CA was asked"):
        create_identity(directory, **ARGUMENTS)

    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-noenc", "-keyout", "ca.key",
            "-out", "ca.pem", "-days", "1000", "-subj", "/CN=Organisation CA", "-addext", "keyUsage=critical,keyCertSign",
            directory=tmp_path)  # fmt: skip
    for request in directory.glob("*.csr"):
        assert "alice.example" in openssl("req", "-in", request, "-noout", "-text")
        if request.name.startswith("rsa"):
            openssl("x509", "-req", "-in", request, "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "730",
                    "-copy_extensions", "copy", "-out", request.with_suffix(".pem"), directory=tmp_path)  # fmt: skip
        else:
            _certified_by_a_ca_that_knows_the_drafts(request, tmp_path)
    with pytest.raises(ConfigError, match=r"ca\.pem: missing"):
        load_identity(directory)
    shutil.copy(tmp_path / "ca.pem", directory / "ca.pem")
    with pytest.raises(ConfigError, match=r"kem\..*\.pem: missing; the key is there"):
        load_identity(directory)

    [public] = directory.glob("kem.*.pub")
    assert "keyEncipherment" in public.with_suffix(".cnf").read_text()
    _certified_by_a_ca_that_knows_the_drafts(public, tmp_path)
    identity = load_identity(directory)
    assert identity.domains == ("alice.example",)
    assert isinstance(identity.ca.public_key(), ec.EllipticCurvePublicKey)
    with pytest.raises(ConfigError, match="all certificates are here"):
        request_certificates(directory, **ARGUMENTS)
    with pytest.raises(ConfigError, match="--csr --renew"):
        renew_identity(directory, **ARGUMENTS)

    again = request_certificates(directory, renew=True, **ARGUMENTS)
    assert len(again) == 5
    assert load_identity(directory).kem.ski == identity.kem.ski, "until the new certificates come"


def _certified_by_a_ca_that_knows_the_drafts(asked: Path, ca: Path) -> None:
    """What the organisation's CA issues for a request, or for the public key of the KEM; no OpenSSL can do it yet."""
    issuer = load_pem_private_key((ca / "ca.key").read_bytes(), None)
    assert isinstance(issuer, ec.EllipticCurvePrivateKey)
    pem = asked.read_text()
    octets = base64.b64decode("".join(pem.splitlines()[1:-1]))
    request = x509.load_der_x509_csr(octets) if asked.suffix == ".csr" else None
    key = from_public_info(octets if request is None else _key_info(request))
    if request is not None:
        assert isinstance(key, CompositeSigningPublicKey)
        key.verify(request.signature, request.tbs_certrequest_bytes)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "alice")]))
        .issuer_name(x509.load_pem_x509_certificate((ca / "ca.pem").read_bytes()).subject)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=730))
        .add_extension(x509.SubjectKeyIdentifier(identifier_of(key)), critical=False)
    )
    role = Role.SIGNING if request is not None else Role.KEM
    for value, critical in certificates._extensions(role, ARGUMENTS["domains"]):
        builder = builder.add_extension(value, critical)
    ecdsa_with_sha256 = bytes.fromhex("300a06082a8648ce3d040302")
    made = certified(builder, key, lambda body: issuer.sign(body, ec.ECDSA(SHA256())), ecdsa_with_sha256)
    asked.with_suffix(".pem").write_bytes(made.public_bytes(Encoding.PEM))


def _key_info(request: x509.CertificateSigningRequest) -> bytes:
    """The SubjectPublicKeyInfo of a request, which `cryptography` does not give out for a key that it does not know."""
    [inside] = der.children(request.tbs_certrequest_bytes, 1)
    return der.sequence(bytes(der.children(inside, 4)[2]))


def test_a_site_with_its_own_ca_asks_no_other(alice: Home) -> None:
    with pytest.raises(ConfigError, match="has its own CA"):
        request_certificates(alice.identity_directory, **ARGUMENTS)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_makes_nothing_in_a_directory_of_another_user_unless_it_has_become_that_user(
    rsa: Path, tmp_path: Path
) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's directories are root's alone
        service = Path(name)
        copy_rsa_keys(rsa, service / "id")
        for path in (service, *service.rglob("*")):
            os.chown(path, 12345, 12345)
        with pytest.raises(AnothersFile, match="belongs to user 12345"):
            create_identity(service / "id", **ARGUMENTS)
        with as_owner_of(service):
            create_identity(service / "id", **ARGUMENTS)
        assert {path.stat().st_uid for path in (service / "id").iterdir()} == {12345}
        (service / "link").symlink_to(tmp_path)
        with pytest.raises(AnothersFile, match="belongs to user 12345"):
            files.write(service / "link" / "new", b"")
