"""This site's own certificates and keys: PEM and PKCS#12, as CAs hand them out, and what is wrong with others.
Standard: RFC 7468, RFC 7292; no passphrase or key is ever in an error.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12

from relay.config import SMIMEKeySettings
from relay.errors import ConfigError
from relay.smime import load_own
from relay.smime.own import signing_key
from tests.testlib.smime import certified, key_pem, pem, write_secret

OFFICE = "securemail@alice.example"


@pytest.mark.parametrize("kind", ["rsa", "p256", "p384"])
@pytest.mark.parametrize("passphrase", [b"", b"horse battery"])
def test_a_key_in_pem_or_pkcs12_is_the_same(tmp_path: Path, kind: str, passphrase: bytes) -> None:
    own = certified(OFFICE, kind=kind)
    (tmp_path / "own.pem").write_bytes(pem(own.certificate, *own.chain))
    write_secret(tmp_path / "own.key", key_pem(own, passphrase))
    settings = [SMIMEKeySettings(certificate=tmp_path / "own.pem", key=tmp_path / "own.key")]
    if passphrase:
        said = write_secret(tmp_path / "pass", passphrase + b"\n")
        bag = pkcs12.serialize_key_and_certificates(
            b"x", own.key, own.certificate, own.chain, BestAvailableEncryption(passphrase)
        )
        settings = [settings[0].model_copy(update={"passphrase": said}),
                    SMIMEKeySettings(certificate=write_secret(tmp_path / "own.p12", bag), passphrase=said)]  # fmt: skip
    for each in load_own(settings):
        assert each.certificate == own.certificate
        assert each.chain == own.chain
        assert each.key.private_numbers() == own.key.private_numbers()


def test_the_first_certificate_that_may_sign_now_signs(tmp_path: Path) -> None:
    keys = [
        certified(OFFICE, days=(-30, -1)),
        certified(OFFICE, usage=["key_encipherment"]),
        certified(OFFICE, kind="p256"),
    ]
    assert signing_key(keys, datetime.now(UTC)) == keys[2]
    assert signing_key(keys[:2], datetime.now(UTC)) is None


def test_what_cannot_be_used_is_named_without_its_secret(tmp_path: Path) -> None:
    own, other = certified(OFFICE), certified(OFFICE, number=1)
    (tmp_path / "own.pem").write_bytes(pem(own.certificate))
    key = write_secret(tmp_path / "own.key", key_pem(own, b"horse battery"))
    for text, change in {
        "not that of the certificate": {"key": write_secret(tmp_path / "other.key", key_pem(other))},
        "its passphrase is another one or missing": {"key": key},
        "another one": {"key": key, "passphrase": write_secret(tmp_path / "wrong", b"wrong horse\n")},
        "not PKCS#12": {"certificate": write_secret(tmp_path / "no.p12", b"nothing")},
        "not certificates in PEM": {"certificate": key, "key": key},
        "Permission denied|No such file|missing": {"key": tmp_path / "missing"},
    }.items():
        with pytest.raises(ConfigError, match=text) as caught:
            load_own([SMIMEKeySettings(certificate=tmp_path / "own.pem").model_copy(update=change)])
        assert "horse" not in str(caught.value)
    (tmp_path / "other.key").chmod(0o644)
    with pytest.raises(ConfigError, match="0644 lets others read"):
        load_own([SMIMEKeySettings(certificate=tmp_path / "own.pem", key=tmp_path / "other.key")])
