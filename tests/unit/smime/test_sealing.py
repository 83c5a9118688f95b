"""What leaves at level smime: opened and verified by OpenSSL, and what it shows outside.
Standard: RFC 8551, RFC 5083, RFC 5753, RFC 9788.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from relay.config import SMIMESettings
from relay.errors import MalformedMessage, TrippedWire
from relay.formats import cms, mime
from relay.formats.cms import der, oids as cms_oids
from relay.formats.protected import protected_entity
from relay.journey.tripwire import check_sealed
from relay.levels import BETWEEN_RELAYS
from relay.smime import CertificateDirectory, OwnKey, oids
from relay.smime.enveloping import enveloped_pieces
from relay.smime.importing import file_under
from relay.smime.sealing import SMIMESealer, signed
from tests.testlib import mails
from tests.testlib.smime import certified, opened_by_openssl

BEN = "ben@bob.example"
OFFICE = "securemail@alice.example"


def sealer(directory: Path, own: OwnKey | None = None, **settings: object) -> SMIMESealer:
    made = SMIMESettings().model_copy(update=settings)
    own = own or certified(OFFICE)
    return SMIMESealer(made, (own,), CertificateDirectory(directory / "certificates"), frozenset({"alice.example"}))


@pytest.mark.parametrize("kind", ["rsa", "rsa-4096", "p256", "p384"])
@pytest.mark.parametrize("cbc", [False, True], ids=["gcm", "cbc"])
@pytest.mark.parametrize("pkcs1", [False, True], ids=["oaep", "pkcs1"])
def test_openssl_opens_it_and_finds_the_signature_good(tmp_path: Path, kind: str, cbc: bool, pkcs1: bool) -> None:
    theirs, original = certified(BEN, kind=kind), mails.random_attachment(200_000)
    partners = {"cbc": ("bob.example",) if cbc else (), "pkcs1": ("*",) if pkcs1 else ()}
    message = sealer(tmp_path, certified(OFFICE, kind=kind), **partners).seal(original, theirs.certificate, [BEN])
    entity = opened_by_openssl(tmp_path, message, theirs)
    assert mime.split(entity)[1] == mime.split(original)[1]
    assert b"smime-type=enveloped-data" in message if cbc else b"smime-type=authEnveloped-data" in message


@pytest.mark.parametrize("signer", ["rsa", "p256", "p384"])
def test_the_chain_up_to_the_root_is_inside(tmp_path: Path, signer: str) -> None:
    own, theirs = certified(OFFICE, kind=signer), certified(BEN)
    opened_by_openssl(tmp_path, sealer(tmp_path, own).seal(mails.plain(), theirs.certificate, [BEN]), theirs)
    assert x509.load_pem_x509_certificate((tmp_path / "signer.pem").read_bytes()) == own.certificate


def test_only_what_others_need_for_an_answer_is_outside(tmp_path: Path) -> None:
    theirs = certified(BEN)
    original = (
        b"From: ann@alice.example\r\nTo: ben@bob.example\r\nSubject: secret\r\nReply-To: office@alice.example\r\n"
        b"References: <1@a>\r\nIn-Reply-To: <1@a>\r\nX-Case: secret\r\nReceived: from a by b; now\r\n"
        b"HP-Outer: Subject: forged\r\nComments: secret\r\nDate: Wed, 02 Dec 2026 20:00:00 +0000\r\n"
        b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nsecret\r\n"
    )
    message = sealer(tmp_path).seal(original, theirs.certificate, [BEN])
    assert b"secret" not in message
    outside = {name for name, _ in mime.fields(mime.header_of(message))}
    assert outside == {
        b"from", b"to", b"subject", b"reply-to", b"references", b"in-reply-to", b"received", b"date",
        b"mime-version", b"content-type", b"content-transfer-encoding", b"content-disposition",
    }  # fmt: skip
    inside = opened_by_openssl(tmp_path, message, theirs)
    assert b"\r\nSubject: secret\r\n" in inside
    assert b"\r\nX-Case: secret\r\n" in inside
    assert b'Content-Type: text/plain; charset=utf-8;\r\n hp="cipher"\r\n' in inside
    assert b"HP-Outer: Subject: [...]\r\n" in inside
    assert b"HP-Outer: Reply-To: office@alice.example\r\n" in inside
    assert b"forged" not in inside
    assert b"Received" not in inside


@pytest.mark.parametrize(
    ("content_type", "inside"),
    [
        (b"", b'Content-Type: text/plain; hp="cipher"\r\n'),
        (b"Content-Type: multipart/mixed; boundary=x;\r\n", b'boundary=x;\r\n hp="cipher"\r\n'),
        (b"Content-Type: text/html\r\n\t; charset=x (comment)\r\n", b"(comment)\r\n"),
        (b'Content-Type: text/plain; name="open\r\n', b'name="open\r\n'),
        (b"Content-Type: text/plain\r\nContent-Type: text/html\r\n", b"text/plain\r\nContent-Type: text/html\r\n"),
        (b'Content-Type: text/plain; hp="clear"\r\n', b'hp="clear"\r\n'),
    ],
)
def test_the_mark_of_the_protected_header_changes_no_reading(content_type: bytes, inside: bytes) -> None:
    original = b"From: ann@alice.example\r\n" + content_type + b"\r\nbody\r\n"
    entity = bytes(protected_entity(original, b"From: ann@alice.example\r\nSubject: [...]\r\n"))
    assert inside in entity
    assert entity.count(b"hp=") == inside.count(b"hp=")
    assert mime.split(entity)[1] == b"body\r\n"


HEADER = b"From: ann@alice.example\r\n\r\n"


@pytest.mark.parametrize(
    "original",
    [
        b"\r\nbody alone\r\n", b"From: a@alice.example", b"From: a@alice.example\r\n", HEADER, HEADER + b"no end",
        HEADER + b"\r\n\r\n", HEADER + b"blanks \t \r\n \r\n", HEADER + b"\xff\x80 8 bits \0 and a NUL\r\n",
        HEADER + b"x" * 5000 + b"\r\n" + b"y " * 1022 + b"--\r\n--\r\n", HEADER + b".\r\n..\r\nFrom x\r\n",
    ],
)  # fmt: skip
def test_mail_with_odd_lines_or_ends_keeps_its_body(tmp_path: Path, original: bytes) -> None:
    theirs = certified(BEN)
    entity = opened_by_openssl(tmp_path, sealer(tmp_path).seal(original, theirs.certificate, [BEN]), theirs)
    assert mime.split(entity)[1] == mime.split(original)[1]


@pytest.mark.parametrize(("names", "cbc"), [(["cbc"], True), (["cbc", "gcm"], False), ([], False), (["gcm"], False)])
def test_a_certificate_that_names_cbc_alone_gets_cbc(tmp_path: Path, names: list[str], cbc: bool) -> None:
    known = {"cbc": oids.ID_AES256_CBC, "gcm": cms_oids.ID_AES256_GCM}
    value = der.sequence(*(der.sequence(der.oid(known[each])) for each in names))
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.840.113549.1.9.15"), value)
    theirs = certified(BEN, more=[extension] if names else [])
    message = sealer(tmp_path).seal(mails.plain(), theirs.certificate, [BEN])
    assert (b"smime-type=enveloped-data" in message) is cbc


def test_who_gets_a_certificate(tmp_path: Path) -> None:
    ours, theirs = sealer(tmp_path), certified(BEN)
    file_under(ours.directory, BEN, theirs.certificate)
    assert ours.certificate("ann@alice.example", BEN) == (theirs.certificate, "")
    assert ours.certificate("", BEN) == (theirs.certificate, "")
    assert "was imported" in ours.certificate("ann@alice.example", "bea@bob.example")[1]
    assert "none of site.domains" in ours.certificate("carol@carol.example", BEN)[1]
    for own in (certified(OFFICE, days=(-9, -1)), certified(OFFICE, usage=["key_encipherment"])):
        assert "may sign" in sealer(tmp_path, own).certificate("ann@alice.example", BEN)[1]


def test_a_header_that_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    long = b"From: ann@alice.example\r\n" + b"To: ben@bob.example\r\n" * 20_000 + b"\r\nbody\r\n"
    with pytest.raises(MalformedMessage):
        sealer(tmp_path).seal(long, certified(BEN).certificate, [BEN])


def outer(kind: bytes, content: bytes, shown: bytes = b"") -> bytes:
    return mime.sealed_message(
        b"", content, kind=kind, shown=b"From: ann@alice.example\r\n" + shown + b"Subject: [...]\r\n"
    )


GCM, CBC = b"authEnveloped-data", b"enveloped-data"


@pytest.mark.parametrize("kind", ["rsa", "p384"])
@pytest.mark.parametrize("cbc", [False, True], ids=["gcm", "cbc"])
def test_the_tripwire_lets_it_pass_as_smime_and_as_no_other_level(kind: str, cbc: bool) -> None:
    content = bytes(enveloped_pieces(b"text", certified(BEN, kind=kind).certificate, cbc=cbc, pkcs1=False))
    message = outer(CBC if cbc else GCM, content, b"Reply-To: office@alice.example\r\n")
    check_sealed(message, "smime")
    for level in BETWEEN_RELAYS:
        with pytest.raises(TrippedWire):
            check_sealed(message, level)


def test_the_tripwire_stops_what_is_not_sealed_to_one_certificate() -> None:
    theirs = certified(BEN).certificate
    gcm, cbc = (bytes(enveloped_pieces(b"text", theirs, cbc=each, pkcs1=False)) for each in (False, True))
    own_form = bytes(
        cms.encode_enveloped(
            cms.AuthEnveloped((cms.KEKRecipient(b"id", bytes(40)),), cms.GCMContent(bytes(12)), b"x", bytes(16))
        )
    )
    two = bytes(
        cms.encode_enveloped(
            cms.AuthEnveloped(
                (cms.RSARecipient(cms.CertificateID(ski=b"1" * 20), bytes(512)),) * 2,
                cms.GCMContent(bytes(12)),
                b"x",
                bytes(16),
            )
        )
    )
    for message in (
        outer(b"signed-data", bytes(signed(b"text", certified(OFFICE)))),
        outer(GCM, own_form),
        outer(GCM, two),
        outer(GCM, gcm[:-1]),
        outer(GCM, gcm + b"\0"),
        outer(CBC, cbc[:-16]),
        outer(GCM, gcm.replace(der.oid(cms_oids.ID_AES256_GCM), der.oid(oids.ID_AES256_CBC))),
        outer(CBC, cbc.replace(der.oid(oids.ID_AES256_CBC), der.oid(cms_oids.ID_AES256_GCM))),
        outer(GCM, gcm, b"X-Secret: yes\r\n"),
        outer(GCM, gcm, b"Bcc: bea@bob.example\r\n"),
        outer(GCM, gcm).replace(b"Subject: [...]", b"Subject: secret"),
        outer(GCM, gcm) + b"text in clear\r\n",
        b"From: ann@alice.example\r\nSubject: [...]\r\n\r\ntext\r\n",
    ):
        with pytest.raises(TrippedWire):
            check_sealed(message, "smime")
