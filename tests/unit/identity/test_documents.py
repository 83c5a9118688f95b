"""The peer document: what is written reads back, and nothing else is believed.
Standard: relay/identity/document.py; whatever is wrong is a BadDocument that quotes nothing unprintable.
"""

from __future__ import annotations

import base64
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings, strategies as st

from relay.errors import ConfigError
from relay.identity import MAX_DOCUMENT, load_identity, read_document, same_fingerprint
from relay.identity.composite import CompositeKEMPrivateKey
from relay.identity.document import BadDocument
from relay.identity.x509_keys import certified, identifier_of
from tests.testlib.long import sized
from tests.unit.identity.forgeries import ca_key
from tests.unit.identity.homes import NOW, Home, inner, signed

FUZZ = settings(
    deadline=None,
    max_examples=sized(80, 2000),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)


def test_a_document_reads_back_as_it_was_written(bob: Home) -> None:
    peer = read_document(bob.document())
    identity = bob.identity
    assert (peer.name, peer.domains, peer.sae_id) == ("bob", ("bob.example",), "sae-bob")
    assert peer.kme_groups == ("shared",)
    assert peer.levels == ("otp", "aes", "pqc", "rsa")
    assert (peer.format, peer.issued) == (2, NOW)
    assert peer.certificates == identity.certificates
    assert peer.ca == identity.ca


def test_a_document_may_leave_out_what_its_levels_do_not_need(bob: Home) -> None:
    content = inner(bob.document(levels=["aes"]))
    for name in ("kem", "rsa_encryption", "rsa_signing"):
        del content["certificates"][name]
    peer = read_document(signed(content, bob.identity.signing.private_key))
    assert (peer.kem, peer.rsa_encryption, peer.rsa_signing) == (None, None, None)


def test_each_document_has_a_higher_serial_number_even_when_the_clock_goes_back(bob: Home) -> None:
    first = read_document(bob.document(now=NOW))
    second = read_document(bob.document(now=NOW))
    third = read_document(bob.document(now=NOW - timedelta(minutes=30)))
    assert first.serial < second.serial < third.serial
    (bob.identity_directory / "serial").write_text("many")
    with pytest.raises(ConfigError, match="serial: not a number"):
        bob.document()


def test_the_fingerprint_is_of_the_keys_and_easy_to_read_out(alice: Home, bob: Home) -> None:
    document = bob.document()
    fingerprint = read_document(document).fingerprint
    assert fingerprint == bob.identity.fingerprint == read_document(bob.document(domains=["bob.example"])).fingerprint
    groups = fingerprint.split(" ")
    assert [len(group) for group in groups] == [4] * 16
    assert fingerprint != alice.identity.fingerprint
    assert same_fingerprint(fingerprint, fingerprint.lower().replace(" ", ":"))
    assert not same_fingerprint(fingerprint, fingerprint[:-1])
    assert not same_fingerprint(fingerprint, "")


def test_export_is_refused_where_the_certificates_do_not_fit(bob: Home) -> None:
    with pytest.raises(ConfigError, match=r"do not name new\.example; renew them"):
        bob.document(domains=["bob.example", "new.example"])
    with pytest.raises(ConfigError, match="not valid now; renew them"):
        bob.document(now=NOW + timedelta(days=800))


@pytest.mark.parametrize(
    ("member", "value", "expected"),
    [
        ("name", "", "name"),
        ("name", "a\x1b[2Jb", "name: has characters that cannot be printed"),
        ("domains", [], "domains"),
        ("domains", ["Bob.example"], "domains.0: not a mail domain in lower case"),
        ("domains", ["bob.example", "bob.example"], "a domain is named twice"),
        ("domains", ["bob.example", "alice.example"], "does not name the domain alice.example"),
        ("domains", "bob.example", "domains"),
        ("sae_id", 1, "sae_id"),
        ("kme_groups", [], "level otp needs a KME group"),
        ("levels", None, "levels"),
        ("levels", ["plaintext"], "levels.0"),
        ("levels", ["aes", "aes"], "a level is named twice"),
        ("serial", 0, "serial"),
        ("serial", 2**63, "serial"),
        ("serial", "5", "serial"),
        ("serial", 5.0, "serial"),
        ("serial", True, "serial"),
        ("issued", "yesterday", "issued"),
        ("issued", "2026-01-01T00:00:00", "issued"),
        ("certificates", {}, "certificates.ca"),
        ("certificates", None, "certificates"),
        ("more", 1, "more"),
    ],
)
def test_a_document_with_doubtful_content_is_refused_though_signed(
    bob: Home, member: str, value: object, expected: str
) -> None:
    content = inner(bob.document()) | {member: value}
    with pytest.raises(BadDocument, match=expected):
        read_document(signed(content, bob.identity.signing.private_key))


def test_a_missing_member_is_named(bob: Home) -> None:
    document = inner(bob.document())
    for member in document:
        content = {name: value for name, value in document.items() if name != member}
        with pytest.raises(BadDocument, match=member):
            read_document(signed(content, bob.identity.signing.private_key))


@pytest.mark.parametrize(
    ("member", "other", "expected"),
    [
        ("kem", "signing", "certificate kem: its key is not one for ML-KEM"),
        ("signing", "rsa_signing", "certificate signing: its key is not one for ML-DSA"),
        ("rsa_signing", "rsa_encryption", "certificate rsa_signing: its keyUsage lacks digitalSignature"),
        ("rsa_encryption", "rsa_signing", "certificate rsa_encryption: its keyUsage lacks keyEncipherment"),
        ("ca", "signing", r"certificate ca: it is not the certificate of a CA"),
        ("signing", "ca", "certificate signing: "),
    ],
)
def test_a_certificate_in_the_wrong_place_is_refused(bob: Home, member: str, other: str, expected: str) -> None:
    content = inner(bob.document())
    content["certificates"][member] = content["certificates"][other]
    with pytest.raises(BadDocument, match=expected):
        read_document(signed(content, bob.identity.signing.private_key))


@pytest.mark.parametrize("level", ["pqc", "rsa"])
def test_a_level_without_its_certificate_is_refused(bob: Home, level: str) -> None:
    content = inner(bob.document(levels=[level]))
    del content["certificates"]["kem" if level == "pqc" else "rsa_signing"]
    with pytest.raises(BadDocument, match=f"level {level} needs a certificate"):
        read_document(signed(content, bob.identity.signing.private_key))


def test_certificates_of_another_site_are_refused(alice: Home, bob: Home) -> None:
    content = inner(bob.document())
    content["certificates"]["kem"] = inner(alice.document())["certificates"]["kem"]
    with pytest.raises(BadDocument, match="certificate kem: the site's CA certificate did not issue it"):
        read_document(signed(content, bob.identity.signing.private_key))


def test_a_document_signed_by_somebody_else_is_refused(alice: Home, bob: Home) -> None:
    with pytest.raises(BadDocument, match="the signature is not that of its signing key"):
        read_document(signed(inner(bob.document()), alice.identity.signing.private_key))


def test_a_signature_for_another_purpose_is_refused(bob: Home) -> None:
    """A CMS signature (RFC 9882) has no ML-DSA context: what was signed as a message is no document."""
    octets = json.dumps(inner(bob.document())).encode()
    file = json.loads(bob.document())
    file |= {
        "document": base64.b64encode(octets).decode(),
        "signature": base64.b64encode(bob.identity.signing.private_key.sign(octets)).decode(),
    }
    with pytest.raises(BadDocument, match="signature"):
        read_document(json.dumps(file).encode())


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "no format number"),
        (b'{"format": "1"}', "no format number"),
        (b'{"format": 1}', "format 1; this version of QuMail Relay knows format 2 only"),
        (b'{"format": true}', "no format number"),
        (b'{"format": 2}', "document: Field required"),
        (b'{"format": 2, "format": 2}', "a name is given twice"),
        (b'{"format": 2, "document": "", "signature": "", "\x1b[2J": 1}', "not JSON"),
        (b'{"format": 2, "document": "", "signature": "", "\xc2\x9b2J": 1}', r"\\x9b2J"),
        (b'{"format": 2, "document": "*", "signature": ""}', "document: not base64"),
        (b'{"format": 2, "document": 5, "signature": ""}', "document: not base64"),
        (b'{"format": 2, "document": "", "signature": ""}', "not JSON"),
        (b'{"format": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 500_000, "not JSON"),
        (b'{"a":' * 150_000, "not JSON"),
        (b" " * (MAX_DOCUMENT + 1), "at most 3145728 octets"),
    ],
    ids=range(17),
)
def test_what_is_no_document_is_refused_and_printable(raw: bytes, expected: str) -> None:
    with pytest.raises(BadDocument, match=expected) as caught:
        read_document(raw)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def _with(
    home: Home,
    public_key: Any,
    usage: dict[str, bool],
    *,
    extra: x509.UnrecognizedExtension | None = None,
    ca: bool = False,
) -> x509.Certificate:
    """A certificate from the site's own CA that says what a test wants."""
    like = home.identity.kem.certificate
    no = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
         "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"), False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder(like.issuer, like.subject, None, 7, NOW, NOW + timedelta(days=9))
        .add_extension(x509.KeyUsage(**(no | usage)), critical=True)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier(identifier_of(public_key)), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("bob.example")]), critical=False)
    )
    if extra is not None:
        builder = builder.add_extension(extra, critical=True)
    return certified(builder, public_key, ca_key(home).sign)


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0")


@pytest.mark.parametrize(
    ("usage", "more", "expected"),
    [
        ({"key_encipherment": True, "digital_signature": True}, {}, "must be the only keyUsage of a KEM"),
        ({"key_encipherment": True, "key_agreement": True}, {}, "must be the only keyUsage of a KEM"),
        ({"key_agreement": True}, {}, "lacks keyEncipherment"),
        ({"key_encipherment": True}, {"ca": True}, "it is the certificate of a CA"),
        ({"key_encipherment": True}, {"extra": UNKNOWN}, "a critical extension that is not understood: 1.2.3.4"),
    ],
)
def test_a_kems_certificate_is_what_the_draft_says(
    bob: Home, usage: dict[str, bool], more: dict[str, Any], expected: str
) -> None:
    content = inner(bob.document())
    certificate = _with(bob, CompositeKEMPrivateKey.generate().public_key(), usage, **more)
    content["certificates"]["kem"] = base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()
    with pytest.raises(BadDocument, match=expected):
        read_document(signed(content, bob.identity.signing.private_key))


@pytest.mark.parametrize("bits", [1024, 2048, 3072])
def test_an_rsa_key_below_4096_bits_is_refused(bob: Home, bits: int) -> None:
    content = inner(bob.document())
    certificate = _with(bob, generate_private_key(65537, bits).public_key(), {"digital_signature": True})
    content["certificates"]["rsa_signing"] = base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()
    with pytest.raises(BadDocument, match=f"its RSA key has {bits} bits"):
        read_document(signed(content, bob.identity.signing.private_key))


@FUZZ
@given(raw=st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_garbage_is_a_bad_document(raw: bytes) -> None:
    with pytest.raises(BadDocument):
        read_document(raw)


@FUZZ
@given(data=st.data())
def test_a_changed_document_is_bad_or_says_the_same(originals: dict[str, Home], data: st.DataObject) -> None:
    document = _original(originals)
    place = data.draw(st.integers(0, len(document) - 1))
    cut = data.draw(st.integers(0, 4))
    changed = document[:place] + data.draw(st.binary(max_size=4)) + document[place + cut :]
    try:
        assert read_document(changed) == read_document(document)
    except BadDocument as error:
        assert str(error).isprintable()


@FUZZ
@given(data=st.data())
def test_changed_certificates_are_bad_though_signed(originals: dict[str, Home], data: st.DataObject) -> None:
    document = _original(originals)
    content = inner(document)
    name = data.draw(st.sampled_from(sorted(content["certificates"])))
    der = bytearray(base64.b64decode(content["certificates"][name]))
    place = data.draw(
        st.integers(0, len(der) - 1) | st.integers(0, 400) | st.integers(len(der) - 5000, len(der) - 4500)
    )
    der[place] ^= data.draw(st.integers(1, 255))
    content["certificates"][name] = base64.b64encode(der).decode()
    try:
        peer = read_document(signed(content, originals["bob"].identity.signing.private_key))
    except BadDocument as error:
        assert str(error).isprintable()
    else:  # the CA's own signature is not looked at, for its key is what is pinned
        assert name == "ca"
        assert peer.fingerprint == read_document(document).fingerprint


@pytest.mark.parametrize("serial", [b"\x00", b"\x80\x01", b"\xff"])
def test_a_certificate_whose_serial_number_is_not_positive_is_refused(
    originals: dict[str, Home], serial: bytes
) -> None:
    content = inner(_original(originals))
    whole = bytearray(base64.b64decode(content["certificates"]["ca"]))
    length = whole.index(b"\xa0\x03\x02\x01\x02\x02") + 6  # behind the version: INTEGER, then this
    whole[length + 1 : length + 1 + whole[length]] = serial.ljust(whole[length], b"\0")
    content["certificates"]["ca"] = base64.b64encode(whole).decode()
    with pytest.raises(BadDocument, match="serial number is not positive"):
        read_document(signed(content, originals["bob"].identity.signing.private_key))


_documents: dict[Path, bytes] = {}


def _original(originals: dict[str, Home]) -> bytes:
    bob = originals["bob"]
    if bob.directory not in _documents:
        _documents[bob.directory] = bob.document()
    return _documents[bob.directory]


@FUZZ
@given(data=st.data())
def test_a_damaged_private_key_is_a_config_error_or_the_same_key(
    originals: dict[str, Home], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    home = originals["alice"]
    path = home.path(data.draw(st.sampled_from(["kem.*.key", "signing.*.key", "rsa_signing.*.key"])))
    whole = path.read_bytes()
    half = data.draw(st.sampled_from(re.findall(rb"-----BEGIN PRIVATE KEY-----\n(.+?)-----END", whole, re.DOTALL)))
    der = bytearray(base64.b64decode(half))
    der[data.draw(st.integers(0, len(der) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole.replace(half, base64.encodebytes(der)))
    try:
        assert load_identity(home.identity_directory, now=NOW).fingerprint
    except ConfigError as error:
        assert path.name in str(error)
    finally:
        path.write_bytes(whole)
