"""SignedData as gateways write it: four signed attributes, each once and well-formed, and nothing beside them.
Standard: RFC 5652 5 and 11, RFC 6211; what is not as wanted is BadStructure, before any signature is looked at.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, strategies as st
from pyasn1.codec.der.decoder import decode as pyasn1_decode
from pyasn1_alt_modules import rfc5652

from relay.errors import BadStructure
from relay.formats import cms
from relay.formats.cms import SignatureScheme, der, oids
from tests.vectors import trees

WHEN = datetime(2026, 11, 25, 10, tzinfo=UTC)
SCHEMES = tuple(SignatureScheme)
ATTRIBUTES = (*trees.SIGNER, 3)
DIGESTS = (1, 0, 1)
"""Where digestAlgorithms stand, seen from the ContentInfo."""
CONTENT_TYPE, DIGEST, SIGNING_TIME, PROTECTION = (
    der.oid(each) for each in (oids.ID_CONTENT_TYPE, oids.ID_MESSAGE_DIGEST, oids.ID_SIGNING_TIME, oids.ID_ALGORITHM_PROTECTION)
)  # fmt: skip
SMIME_CAPABILITIES = bytes.fromhex("06092a864886f70d01090f")
UTC_2026 = b"\x17\x0d261125100000Z"


def _signed(scheme: SignatureScheme = SignatureScheme.ML_DSA_87_P384, when: datetime = WHEN) -> bytes:
    """SignedData whose signature nobody could verify."""
    digest = bytes(64)
    signed = cms.Signed(
        b"content", scheme, cms.CertificateID(ski=bytes(20)), cms.attributes_to_sign(scheme, digest, when), digest,
        b"signature", b"\x30\x00",
    )  # fmt: skip
    return cms.encode_signed(signed)


def _attributes(signed: bytes) -> dict[bytes, bytes]:
    """Each signed attribute's type, as DER, and the whole attribute."""
    node = trees.parsed(signed)
    for index in ATTRIBUTES:
        assert not isinstance(node[1], bytes)
        node = node[1][index]
    assert not isinstance(node[1], bytes)
    return {trees.encoded(each[1][0]): trees.encoded(each) for each in node[1] if not isinstance(each[1], bytes)}


def _with(signed: bytes, *attributes: bytes) -> bytes:
    """The same with these signed attributes, which need not be any, in the order that DER wants."""
    return trees.changed(signed, ATTRIBUTES, lambda _: [(0xA0, b"".join(sorted(attributes)))])


def _one_changed(kind: bytes, *values: bytes, signed: bytes | None = None) -> bytes:
    """The attribute of this type has these values."""
    signed = signed or _signed()
    attribute = der.sequence(kind, der.set_of(values))
    return _with(signed, *(_attributes(signed) | {kind: attribute}).values())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_signing_time_comes_back(scheme: SignatureScheme) -> None:
    assert cms.decode_signed(_signed(scheme)).signing_time == WHEN


@pytest.mark.parametrize(
    ("when", "written"),
    [
        (datetime(1950, 1, 1, tzinfo=UTC), b"\x17\x0d500101000000Z"),
        (datetime(2049, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), b"\x17\x0d491231235959Z"),
        (datetime(2050, 1, 1, tzinfo=UTC), b"\x18\x0f20500101000000Z"),
        (datetime(2126, 11, 25, 10, tzinfo=UTC), b"\x18\x0f21261125100000Z"),
        (datetime(2050, 1, 1, 1, tzinfo=timezone(timedelta(hours=2))), b"\x17\x0d491231230000Z"),
    ],
)
def test_years_from_2050_on_are_written_as_generalized_time(when: datetime, written: bytes) -> None:
    """RFC 5652, 11.3; a UTCTime of two digits would be read a hundred years earlier."""
    signed = _signed(when=when)
    assert _attributes(signed)[SIGNING_TIME].endswith(written)
    assert cms.decode_signed(signed).signing_time == when.replace(microsecond=0)


_moments = st.integers(0, 9998 * 365 * 86_400_000).map(
    lambda ms: datetime(1, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
)


@given(_moments)
def test_every_time_is_read_as_it_was_written_and_as_others_read_it(when: datetime) -> None:
    signed = _signed(when=when)
    assert cms.decode_signed(signed).signing_time == when.astimezone(UTC).replace(microsecond=0)
    raw = _attributes(signed)[SIGNING_TIME]
    attribute, rest = pyasn1_decode(raw, asn1Spec=rfc5652.Attribute())
    assert rest == b""
    time, rest = pyasn1_decode(attribute["attrValues"][0], asn1Spec=rfc5652.SigningTime())
    assert rest == b""
    assert time.getName() == ("utcTime" if 1950 <= when.astimezone(UTC).year < 2050 else "generalTime")


@pytest.mark.parametrize(
    "value",
    [
        der.NULL,
        b"",
        b"\x17\x00",
        b"\x17\x0b2611251000Z",
        b"\x17\x11261125100000+0000",
        b"\x17\x0d261325100000Z",
        b"\x17\x0d261125240000Z",
        b"\x17\x0d261125100060Z",
        b"\x17\x0d261125 10000Z",
        b"\x18\x0f20261125100000Z",
        b"\x18\x0f20491231235959Z",
        b"\x18\x1120500101000000.5Z",
        b"\x18\x0e20500101000000",
        b"\x18\x1320500101000000+0000",
        b"\x04\x0d261125100000Z",
        b"\x13\x0d261125100000Z",
        UTC_2026 + UTC_2026,
    ],
)
def test_a_signing_time_that_is_none_or_written_otherwise_is_refused(value: bytes) -> None:
    with pytest.raises(BadStructure):
        cms.decode_signed(_one_changed(SIGNING_TIME, value))


@given(st.binary(max_size=20) | st.from_regex(rb"\A(\x17\x0d[0-9]{12}Z|\x18\x0f[0-9]{14}Z)\Z"))
def test_whatever_stands_as_signing_time_is_a_time_in_its_only_form_or_refused(value: bytes) -> None:
    try:
        found = cms.decode_signed(_one_changed(SIGNING_TIME, value)).signing_time
    except BadStructure:
        return
    assert found is not None
    assert _attributes(_signed(when=found))[SIGNING_TIME].endswith(value)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", [CONTENT_TYPE, DIGEST, SIGNING_TIME, PROTECTION])
def test_each_signed_attribute_must_be_there_once_with_one_value(scheme: SignatureScheme, kind: bytes) -> None:
    signed = _signed(scheme)
    attributes = _attributes(signed)
    value = trees.encoded(trees.parsed(attributes[kind])[1][1][1][0])  # type: ignore[index,arg-type]
    assert cms.decode_signed(_one_changed(kind, value, signed=signed))
    for wrong in (
        _with(signed, *(each for known, each in attributes.items() if known != kind)),
        _with(signed, *attributes.values(), attributes[kind]),
        _one_changed(kind, signed=signed),
        _one_changed(kind, value, value, signed=signed),
        _one_changed(kind, der.NULL, signed=signed),
    ):
        with pytest.raises(BadStructure):
            cms.decode_signed(wrong)


@pytest.mark.parametrize(
    "kind", [SMIME_CAPABILITIES, bytes.fromhex("06032a0304"), bytes.fromhex("060b2a864886f70d010910022f")]
)
def test_further_signed_attributes_are_refused(kind: bytes) -> None:
    with pytest.raises(BadStructure, match="signed attributes"):
        cms.decode_signed(_one_changed(kind, b"\x30\x00"))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_algorithm_protection_must_say_the_algorithms_that_are_used(scheme: SignatureScheme) -> None:
    [other] = set(SCHEMES) - {scheme}
    signed, theirs = _signed(scheme), _attributes(_signed(other))
    with pytest.raises(BadStructure, match="algorithms are other ones"):
        cms.decode_signed(_with(signed, *(_attributes(signed) | {PROTECTION: theirs[PROTECTION]}).values()))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_digest_algorithms_are_that_of_the_signer_and_no_other(scheme: SignatureScheme) -> None:
    names = {SignatureScheme.ML_DSA_87_P384: oids.ID_SHA512, SignatureScheme.RSA_PSS: oids.ID_SHA256}
    [other] = set(SCHEMES) - {scheme}
    right, wrong = der.algorithm(names[scheme]), der.algorithm(names[other])
    with_null = der.algorithm(names[scheme], der.NULL)
    for accepted in ([right], [with_null]):
        assert cms.decode_signed(trees.put(_signed(scheme), DIGESTS, der.set_of(accepted)))
    for refused in ([], [wrong], [right, wrong], [right, right], [right, with_null], [der.NULL]):
        with pytest.raises(BadStructure):
            cms.decode_signed(trees.put(_signed(scheme), DIGESTS, der.set_of(refused)))
    with pytest.raises(BadStructure):
        cms.decode_signed(trees.put(_signed(scheme), DIGESTS, der.sequence(right)))


ISSUER = der.sequence(der.sequence(), der.integer(1))


@pytest.mark.parametrize(("data", "signer"), [(0, 3), (1, 3), (2, 3), (4, 3), (5, 3), (3, 0), (3, 1), (3, 2), (3, 4)])
def test_versions_for_a_key_identifier_are_3(data: int, signer: int) -> None:
    changed = trees.put(_signed(), (1, 0, 0), der.integer(data))
    with pytest.raises(BadStructure, match="version"):
        cms.decode_signed(trees.put(changed, (*trees.SIGNER, 0), der.integer(signer)))


@pytest.mark.parametrize(("data", "signer"), [(1, 1), (3, 1), (1, 3), (3, 3), (0, 1), (1, 0)])
def test_versions_for_issuer_and_serial_number_are_1(data: int, signer: int) -> None:
    changed = trees.put(_signed(), (*trees.SIGNER, 1), ISSUER)
    changed = trees.put(changed, (1, 0, 0), der.integer(data))
    changed = trees.put(changed, (*trees.SIGNER, 0), der.integer(signer))
    if (data, signer) == (1, 1):
        assert cms.decode_signed(changed).signer.serial == 1
    else:
        with pytest.raises(BadStructure, match="version"):
            cms.decode_signed(changed)


def test_an_empty_key_identifier_is_refused() -> None:
    for data, signer in ((1, 1), (3, 3)):
        changed = trees.put(_signed(), (*trees.SIGNER, 1), b"\x80\x00")
        changed = trees.put(changed, (1, 0, 0), der.integer(data))
        with pytest.raises(BadStructure):
            cms.decode_signed(trees.put(changed, (*trees.SIGNER, 0), der.integer(signer)))


@pytest.mark.parametrize("tag", [b"\xa0\x00", b"\xa1\x00", b"\xa2\x00", b"\xa3\x00", b"\x04\x00"])
def test_certificates_of_other_kinds_which_would_want_another_version_are_refused(tag: bytes) -> None:
    with pytest.raises(BadStructure):
        cms.decode_signed(trees.put(_signed(), (1, 0, 3, 0), tag))


def test_revocation_lists_and_unsigned_attributes_are_refused() -> None:
    for path, element in (((1, 0, 3), b"\xa1\x02\x30\x00"), ((*trees.SIGNER, 5), b"\xa1\x00")):
        with pytest.raises(BadStructure):
            cms.decode_signed(trees.followed(_signed(), path, element))


@given(st.data())
def test_changed_signed_attributes_are_refused_or_say_what_was_signed(data: st.DataObject) -> None:
    """One attribute left out, doubled, changed or added: what is accepted has the four, and the time among them."""
    signed = _signed()
    attributes = list(_attributes(signed).values())
    position = data.draw(st.integers(0, len(attributes) - 1))
    attribute = attributes[position]
    cut = data.draw(st.integers(0, len(attribute) - 1))
    changed = data.draw(
        st.sampled_from(
            [[], [attribute, attribute], [attribute[:cut]], [attribute[:cut] + b"\x05\x00" + attribute[cut:]]]
        )
        | st.binary(min_size=1, max_size=3).map(lambda new: [attribute[:cut] + new + attribute[cut + len(new) :]])
    )
    whole = _with(signed, *attributes[:position], *changed, *attributes[position + 1 :])
    try:
        found = cms.decode_signed(whole)
    except BadStructure:
        return
    assert len(_attributes(whole)) == 4
    assert isinstance(found.signing_time, datetime)
