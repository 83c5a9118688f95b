"""The directory of other people's certificates: who is found under which name, and what is never sealed to.
Standard: RFC 8550 (names, key usage); names of files follow from addresses alone.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from relay.smime import CertificateDirectory, OwnKey
from relay.smime.importing import file_under
from tests.testlib.smime import certified, pem

BEN = "ben@bob.example"
GATEWAY = "securemail@bob.example"


@pytest.fixture
def directory(tmp_path: Path) -> CertificateDirectory:
    return CertificateDirectory(tmp_path / "certificates")


def sealed_to(directory: CertificateDirectory, mailbox: str) -> object:
    return directory.of(mailbox).to_seal(datetime.now(UTC))


def test_somebodys_own_certificate_comes_before_that_of_their_domain(directory: CertificateDirectory) -> None:
    own, gateway = certified(BEN), certified(GATEWAY, number=1)
    file_under(directory, BEN, own.certificate)
    file_under(directory, "bob.example", gateway.certificate)
    assert sealed_to(directory, BEN) == own.certificate
    assert sealed_to(directory, "bea@bob.example") == gateway.certificate
    assert sealed_to(directory, "ben@sub.bob.example") is None
    assert sealed_to(directory, "ben@notbob.example") is None
    assert sorted(directory.names()) == ["ben@bob.example", "bob.example"]


@pytest.mark.parametrize("spelling", ["Ben@bob.example", "BEN@BOB.EXAMPLE", '"ben"@bob.example'])
def test_all_spellings_of_a_mailbox_find_its_certificate(directory: CertificateDirectory, spelling: str) -> None:
    file_under(directory, BEN, certified(BEN).certificate)
    assert sealed_to(directory, spelling) is not None


@pytest.mark.parametrize(
    "mailbox", ["../ben@bob.example", "a/b@bob.example", ".@bob.example", "ben%2f@bob.example", "x" * 400 + "@bob.example",
                "ben@../bob.example", "ben@", "@bob.example", "ben", "", "ben@bob.example/ben", "b\0n@bob.example", "\udcff@bob.example"],
)  # fmt: skip
def test_no_address_leads_out_of_the_directory_or_to_another_ones_file(
    directory: CertificateDirectory, mailbox: str
) -> None:
    file_under(directory, BEN, certified(BEN).certificate)
    assert sealed_to(directory, mailbox) is None
    assert directory.of(mailbox).why_not(datetime.now(UTC))
    file = directory.file_of(mailbox)
    assert file is None or Path(os.path.normpath(file)).parent in (directory.path, directory.path / "bob.example")


@pytest.mark.parametrize(
    ("made", "cause"),
    [
        (certified(BEN, days=(-30, -1)), "it ended on"),
        (certified(BEN, days=(1, 30)), "it is not valid before"),
        (certified(BEN, usage=["digital_signature"]), "may not encrypt"),
        (certified(BEN, kind="p256", usage=["digital_signature", "key_encipherment"]), "may not encrypt"),
        (certified(BEN, uses=[ExtendedKeyUsageOID.SERVER_AUTH]), "it is not for mail"),
        (certified(BEN, kind="rsa-1024"), "1024 bits"),
        (certified(BEN, kind="p521"), "curve secp521r1"),
        (certified("bea@bob.example"), "does not name ben@bob.example"),
        (certified("ben@bob.example.evil.example"), "does not name ben@bob.example"),
        (certified(dns=["bob.example"]), "does not name ben@bob.example"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_is_sealed_to_a_certificate_that_is_not_for_it(
    directory: CertificateDirectory, made: OwnKey, cause: str
) -> None:
    """Nor does the certificate of the domain take the place of somebody's own."""
    directory.put(BEN, [made.certificate])
    file_under(directory, "bob.example", certified(GATEWAY, number=1).certificate)
    found = directory.of(BEN)
    assert found.to_seal(datetime.now(UTC)) is None
    assert cause in found.why_not(datetime.now(UTC))


@pytest.mark.parametrize(
    "made",
    [
        certified(BEN),
        certified("Ben@Bob.Example"),
        certified("other@bob.example", BEN),
        certified(subject=BEN),
        certified(BEN, kind="p256"),
        certified(BEN, kind="p384"),
        certified(BEN, usage=None, uses=None),
        certified(BEN, uses=[ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
    ],
)
def test_certificates_as_cas_issue_them_are_sealed_to(directory: CertificateDirectory, made: OwnKey) -> None:
    directory.put(BEN, [made.certificate])
    assert sealed_to(directory, BEN) == made.certificate


@pytest.mark.parametrize("made", [certified(GATEWAY), certified(dns=["bob.example"]), certified(subject=GATEWAY)])
def test_certificates_as_gateways_name_them_count_for_their_domain(
    directory: CertificateDirectory, made: OwnKey
) -> None:
    directory.put("bob.example", [made.certificate])
    assert sealed_to(directory, BEN) == made.certificate


def test_of_several_the_usable_one_that_began_last_is_sealed_to(directory: CertificateDirectory) -> None:
    old, new = certified(BEN, days=(-300, 65)), certified(BEN, number=1, days=(-10, 355))
    coming, signs = certified(BEN, days=(5, 370)), certified(BEN, days=(-1, 370), usage=["digital_signature"])
    for each in (new, coming, signs, old):
        file_under(directory, BEN, each.certificate)
    assert sealed_to(directory, BEN) == new.certificate


def test_a_change_counts_from_the_next_look_up(directory: CertificateDirectory) -> None:
    file_under(directory, BEN, certified(BEN).certificate)
    assert sealed_to(directory, BEN) is not None
    directory.put(BEN, [])
    assert sealed_to(directory, BEN) is None


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_broken_file_seals_nothing_and_is_named(directory: CertificateDirectory, content: bytes) -> None:
    file_under(directory, BEN, certified(BEN).certificate)
    file_under(directory, "bob.example", certified(GATEWAY).certificate)
    file = directory.file_of(BEN)
    assert file is not None
    file.write_bytes(content)
    assert sealed_to(directory, BEN) is None
    assert str(file) in directory.of(BEN).why_not(datetime.now(UTC))


def test_a_file_that_others_can_write_seals_nothing(directory: CertificateDirectory) -> None:
    file_under(directory, BEN, certified(BEN).certificate)
    file = directory.file_of(BEN)
    assert file is not None
    file.chmod(0o666)
    assert sealed_to(directory, BEN) is None
    assert "lets others write it" in directory.of(BEN).why_not(datetime.now(UTC))


def test_among_a_hundred_thousand_files_a_look_up_takes_less_than_a_millisecond(tmp_path: Path) -> None:
    content = pem(certified("person0@domain0.example").certificate)
    for domain in range(20):
        folder = tmp_path / f"domain{domain}.example"
        folder.mkdir()
        (folder / "person0.pem").write_bytes(content)
        for person in range(1, 5000):
            os.link(folder / "person0.pem", folder / f"person{person}.pem")
    directory = CertificateDirectory(tmp_path)
    times = []
    for number in range(200):
        began = perf_counter()
        assert directory.of(f"person{number}@domain{number % 20}.example").certificates
        times.append(perf_counter() - began)
    assert sorted(times)[100] < 0.001, "that half of them is slower is no chance"
