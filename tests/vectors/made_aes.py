"""The test vectors of level aes, and those of the message around it.
Standard: relay/FORMAT.md, "Level aes" and "Outer message"; RFC 5083, RFC 5084.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from relay.formats import cms
from relay.formats.cms import der
from relay.formats.cms.der import header
from tests.vectors import parts, trees
from tests.vectors.case import ALICE, Binding, Case, Name, alices
from tests.vectors.parts import ORIGINAL, PAYLOAD, flipped, gcm, kek, payload, replaced

KEY = Name("alice-bob", "2", "key-1")
KEYS = alices({"key-1": parts.octets("key-1")})
_PARAMETERS = (*trees.ALGORITHM, 1)
_FIRST = (*trees.RECIPIENTS, 0)
_OTHER_INFO = bytes.fromhex("a40c060853040102030405060500")
_NAMES_NO_KEY = frozenset(
    {"no-recipients", "unknown-recipient", "unknown-key-attribute", "nested-1000", "not-asn1", "empty", "no-attribute"}
)
_ATTRIBUTES = "3018 06092a864886f70d010903 310b 06092a864886f70d010701"


def aes_cases() -> Iterator[Case]:
    """What opens, and then what does not."""
    yield from _opening()
    yield from _failing()
    yield from _keys()
    yield from _bound()
    for name, comment, content in (*_algorithms(), *_structures()):
        yield case(name, "not for us" if name in _NAMES_NO_KEY else "bad structure", comment, content)
    for name, comment, content in _payloads():
        yield case(name, "bad structure", comment, content, binds=True)
    yield from _names()
    yield from _messages()


def case(
    name: str,
    expect: str,
    comment: str,
    content: bytes,
    original: bytes = ORIGINAL,
    *,
    binds: bool = False,
    **more: Any,
) -> Case:
    """A case of this level; with success its key is bound."""
    success = expect == "success"
    if success or binds:
        more = {"binds": parts.binds(content)} | more
    if success:
        more |= {"original": original, "fingerprint": cms.decode_enveloped(content).fingerprint()}
    return Case(f"aes-{name}", expect, "aes", comment, content, more.pop("keys", KEYS), **more)


def _opening() -> Iterator[Case]:
    sealed = gcm(PAYLOAD, kek())
    yield case("plain", "success", "as we seal", sealed)
    long_name = "+".join(["0b8d2f9e-2f52-4a37-9a4f-3c1f6e5f9f41"] * 6)
    named = gcm(PAYLOAD, kek(long_name))
    yield case(
        "long-key-id", "success", "a key_ID of 221 characters that is no UUID", named,
        keys=alices({long_name: parts.octets(long_name)}),
    )  # fmt: skip
    eight_bit = "Subject: x\r\n\r\nGrüße\0\r\n.\r\n".encode()
    yield case("eight-bit", "success", "octets above 127 and a NUL", gcm(payload(original=eight_bit), kek()), eight_bit)
    yield case("empty-original", "success", "an original of no octets", gcm(payload(original=b""), kek()), b"")
    begin = b"\r\nno header\r\n"
    yield case("no-header", "success", "an original without header", gcm(payload(original=begin), kek()), begin)
    unended = b"Subject: no line end"
    yield case(
        "unended-line", "success", "an original without a last line end", gcm(payload(original=unended), kek()), unended
    )
    yield case("ber", "success", "indefinite lengths and chunks, as OpenSSL streams", _ber(sealed))
    nested = "chunks inside one more string of indefinite length, as Bouncy Castle writes them"
    yield case("ber-nested", "success", nested, _ber(sealed, b"\x24\x80", b"\0\0"))
    for name, sender in (("null-sender", ""), ("other-sender", "x@stranger.example"), ("bare-sender", "postmaster")):
        comment = "MAIL FROM of the outer message does not matter: the sealed sender counts"
        yield case(name, "success", comment, sealed, sender=sender)


def _ber(sealed: bytes, before: bytes = b"", behind: bytes = b"") -> bytes:
    """Every outer length indefinite, the ciphertext in chunks of 40 octets, between these octets."""
    tree: Any = trees.parsed(sealed)
    version, infos, encrypted, tag = tree[1][1][1][0][1]
    kind, algorithm, (_, ciphertext) = encrypted[1]
    assert isinstance(ciphertext, bytes)
    chunks = b"".join(trees.encoded((0x04, ciphertext[start : start + 40])) for start in range(0, len(ciphertext), 40))
    end = b"\0\0"
    content = (
        b"\x30\x80"
        + trees.encoded(kind)
        + trees.encoded(algorithm)
        + b"\xa0\x80"
        + before
        + chunks
        + behind
        + end
        + end
    )
    data = b"\x30\x80" + trees.encoded(version) + trees.encoded(infos) + content + trees.encoded(tag) + end
    return b"\x30\x80" + trees.encoded(tree[1][0]) + b"\xa0\x80" + data + end + end


def _failing() -> Iterator[Case]:
    sealed = gcm(PAYLOAD, kek())
    yield case("no-key", "no key", "Bob's KME does not have the key", sealed, keys={})
    yield case("destroyed", "key destroyed", "the key was destroyed after its use", sealed, keys={}, destroyed=(KEY,))
    other = alices({"key-1": parts.octets("another")})
    yield case("other-octets", "bad tag", "the KMEs disagree about the key", sealed, keys=other)
    nonce = parts.octets("cek nonce", 12).hex()
    wrapped = kek().wrapped_cek.hex()
    for name, comment, content in (
        ("flipped-tag", "one bit of the tag", flipped(sealed)),
        ("flipped-ciphertext", "one bit of the ciphertext", flipped(sealed, -40)),
        ("flipped-nonce", "one bit of the nonce", replaced(sealed, nonce, flipped(bytes.fromhex(nonce)).hex())),
        ("flipped-wrapped-key", "one bit of the wrapped content key",
         replaced(sealed, wrapped, flipped(bytes.fromhex(wrapped)).hex())),
        ("shorter-ciphertext", "the ciphertext without its last octet",
         trees.changed(sealed, trees.CIPHERTEXT, lambda node: [(node[0], node[1][:-1])])),
        ("other-cek", "a content key of another message, rightly wrapped", gcm(PAYLOAD, kek(cek="other"))),
    ):  # fmt: skip
        yield case(name, "bad tag", comment, content)


def _keys() -> Iterator[Case]:
    """Keys that are no key-encryption keys, and recipients that are not the one."""
    for length in (1, 16, 24, 31, 33, 40, 48, 64, 1024):
        key = parts.octets("key-1", length)
        # What a reader might make of it: as it is where AES has such keys, else cut or filled up to 32 octets.
        wrapping = key if length in (16, 24) else key[:32].ljust(32, b"\0")
        content = gcm(PAYLOAD, kek(key=wrapping))
        yield case(
            f"key-of-{length}", "bad structure", f"a key of {length} octets", content, keys=alices({"key-1": key})
        )
    last = parts.octets("key-1", 64)
    content = gcm(PAYLOAD, kek(key=last[32:]))
    yield case("key-end", "bad structure", "the last 32 octets of a key of 64", content, keys=alices({"key-1": last}))
    both = KEYS | alices({"key-2": parts.octets("key-2")})
    for name, comment, recipients, keys in (
        ("two-recipients", "two recipients with two keys, both at Bob's", (kek(), kek("key-2")), both),
        ("other-key-too", "a second recipient, whose key Bob does not have", (kek("key-2"), kek()), KEYS),
        ("recipient-twice", "one recipient twice", (kek(), kek()), KEYS),
        ("no-attribute", "no QKDKeyAttribute: whose key it is, is not said", (kek(attribute=None),), KEYS),
    ):
        expect = "not for us" if name in _NAMES_NO_KEY else "bad structure"
        yield case(name, expect, comment, gcm(PAYLOAD, *recipients), keys=keys)
    sealed = gcm(PAYLOAD, kek())
    for name, comment, attribute in (
        ("other-master", "a key of an SAE that is no peer's", cms.QKDKeyAttribute("9", "1", "alice-bob")),
        ("other-slave", "a key for another SAE than Bob's", cms.QKDKeyAttribute("2", "9", "alice-bob")),
        ("other-group", "a key of a KME group that Bob does not share with Alice", cms.QKDKeyAttribute("2", "1", "x")),
        ("reflected", "master and slave SAE exchanged", cms.QKDKeyAttribute("1", "2", "alice-bob")),
    ):
        yield case(name, "unknown peer", comment, gcm(PAYLOAD, kek(attribute=attribute)))
    yield case(
        "group-for-otp",
        "not accepted",
        "a key of a group that serves level otp alone",
        sealed,
        groups={"alice-bob": "otp"},
    )
    yield case("group-for-aes", "success", "a key of a group for level aes", sealed, groups={"alice-bob": "aes"})
    for accept in ("otp", "pqc", "otp,pqc,rsa"):
        peers = (ALICE._replace(accept=accept),)
        name = f"accept-{accept.replace(',', '-')}"
        yield case(name, "not accepted", f"Alice may use {accept} only", sealed, peers=peers, binds=True)
    yield case("accept-aes", "success", "Alice may use aes only", sealed, peers=(ALICE._replace(accept="aes"),))


def _bound() -> Iterator[Case]:
    sealed = gcm(PAYLOAD, kek())
    [same] = parts.binds(sealed)
    opened = case("bound-to-this", "success", "a copy: its key has opened just this", sealed, bound=(same,))
    yield replace(opened, binds=())
    others = tuple(parts.octets(f"fingerprint {number}") for number in range(3))
    for name, comment, bound in (
        ("bound-to-another", "its key has opened another message", Binding(KEY, "aes", others[:1])),
        ("bound-at-otp", "its key has opened something at level otp", Binding(KEY, "otp", others[:1])),
        ("bound-at-otp-to-this", "the same fingerprint, but at level otp", same._replace(level="otp")),
        ("bound-in-other-case", "its key was used, in other letters", Binding(KEY._replace(key_ID="KEY-1"), "aes", others[:1])),
    ):  # fmt: skip
        yield case(name, "key used", comment, sealed, bound=(bound,))
    three: dict[str, Any] = {"peers": (ALICE._replace(messages=3),)}
    second = case(
        "second-of-three",
        "success",
        "one key may open three messages",
        sealed,
        bound=(Binding(KEY, "aes", others[:1]),),
    )
    yield replace(second, **three)
    third = case(
        "third-of-three", "success", "one key may open three messages", sealed, bound=(Binding(KEY, "aes", others[:2]),)
    )
    yield replace(third, **three)
    fourth = case(
        "fourth-of-three", "key used", "one key may open three messages", sealed, bound=(Binding(KEY, "aes", others),)
    )
    yield replace(fourth, **three)
    among = Binding(KEY, "aes", (others[0], same.fingerprints[0], others[1]))
    copy = case("copy-among-three", "success", "a copy, where one key may open three messages", sealed, bound=(among,))
    yield replace(copy, binds=(), **three)
    elsewhere = Binding(KEY._replace(group="other"), "aes", others[:1])
    yield case("bound-elsewhere", "success", "a key_ID that was used in another group", sealed, bound=(elsewhere,))


def _algorithms() -> Iterator[tuple[str, str, bytes]]:
    """Other ways to encrypt, of which CMS knows many."""
    sealed = gcm(PAYLOAD, kek())
    oid = "060960864801650304012e"
    nonce = parts.octets("cek nonce", 12)
    yield "cbc", "AES-256-CBC content", replaced(sealed, oid, "060960864801650304012a")
    cbc = trees.put(replaced(sealed, oid, "060960864801650304012a"), _PARAMETERS, b"\x04\x10" + bytes(16))
    yield "cbc-with-iv", "AES-256-CBC content with its own parameters", cbc
    yield "gcm-128", "AES-128-GCM content", replaced(sealed, oid, "0609608648016503040106")
    for length in (4, 8, 12, 13, 14, 15):
        cut = trees.put(
            trees.put(sealed, trees.TAG, bytes((4, length, *range(length)))), (*_PARAMETERS, 1), bytes((2, 1, length))
        )
        yield f"tag-{length}", f"a tag of {length} octets, which RFC 5084 would allow", cut
    yield "icvlen-default", "ICVlen left out, which means 12", trees.changed(sealed, (*_PARAMETERS, 1), lambda _: [])
    long = trees.put(sealed, (*_PARAMETERS, 0), b"\x04\x10" + nonce + bytes(4))
    yield "long-nonce", "a nonce of 16 octets", long
    yield "wrap-128", "AES-128 wrap", replaced(sealed, "060960864801650304012d", "0609608648016503040105")


def _structures() -> Iterator[tuple[str, str, bytes]]:
    sealed = gcm(PAYLOAD, kek())
    oid = "060b2a864886f70d0109100117"
    attributes = bytes.fromhex(_ATTRIBUTES)
    enveloped = trees.put(sealed, (0,), bytes.fromhex("06092a864886f70d010703"))
    yield (
        "enveloped-data",
        "EnvelopedData: encrypted without authentication",
        trees.changed(enveloped, trees.TAG, lambda _: []),
    )
    yield "other-content-type", "a content type that nobody knows", replaced(sealed, oid, "060b2a864886f70d0109100177")
    yield "version-1", "AuthEnvelopedData version 1", trees.put(sealed, trees.VERSION, b"\x02\x01\x01")
    yield "kek-version-2", "KEKRecipientInfo version 2", trees.put(sealed, (*_FIRST, 0), b"\x02\x01\x02")
    yield (
        "authenticated-attributes",
        "attributes beside the content",
        trees.followed(sealed, trees.CONTENT, header(0xA1, len(attributes)) + attributes),
    )
    yield (
        "unauthenticated-attributes",
        "attributes after the tag",
        trees.followed(sealed, trees.TAG, header(0xA2, len(attributes)) + attributes),
    )
    yield "originator-info", "certificates of an originator", trees.followed(sealed, trees.VERSION, b"\xa0\x00")
    yield "no-recipients", "an empty SET of recipients", trees.put(sealed, trees.RECIPIENTS, b"\x31\x00")
    masses = [replace(kek(), key_identifier=f"key-{number:03}".encode()) for number in range(101)]
    yield "too-many-recipients", "101 recipients", gcm(PAYLOAD, *masses)
    yield "unknown-recipient", "a kind of recipient that nobody knows", trees.put(sealed, _FIRST, _OTHER_INFO)
    yield (
        "mixed-recipients",
        "a quantum key, and an RSA certificate",
        gcm(PAYLOAD, kek(), parts.ktri(parts.people()[1])),
    )
    other = trees.put(sealed, (*_FIRST, 1, 1, 0), bytes.fromhex("0603550403"))
    yield "unknown-key-attribute", "an OtherKeyAttribute that is not ours", other
    dated = trees.followed(sealed, (*_FIRST, 1, 0), b"\x18\x0f20261125100000Z")
    yield "date", "a date in the key identifier", dated
    yield "no-ciphertext", "encryptedContent left out", trees.changed(sealed, trees.CIPHERTEXT, lambda _: [])
    yield "truncated", "the last octet is missing", sealed[:-1]
    yield "trailing", "one octet too many", sealed + b"\0"
    yield "non-minimal-length", "a length field with a needless zero", sealed[:1] + b"\x83\x00" + sealed[2:]
    yield "two-gigabytes", "a length field of 2 GB", b"\x30\x84\x7f\xff\xff\xff" + sealed[4:]
    yield "nested-1000", "indefinite lengths nested 1,000 deep", b"\x30\x80" * 1000 + b"\0\0" * 1000
    yield "not-asn1", "text instead of CMS", b"This is not CMS.\r\n"
    yield "empty", "nothing at all", b""


def _payloads() -> Iterator[tuple[str, str, bytes]]:
    """Sealed by somebody who has the key, but not as the format wants it."""
    yield "no-message", "the payload is text/plain", gcm(b"Content-Type: text/plain\r\n\r\nhello\r\n", kek())
    yield "payload-without-header", "a payload without a header", gcm(ORIGINAL, kek())
    yield "empty-payload", "a payload of no octets", gcm(b"", kek())
    yield "version-0", "a payload of format version 0, without sealed envelope", gcm(parts.VERSION_0, kek())
    encoded = b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64.b64encode(ORIGINAL)
    yield "encoded-payload", "message/rfc822 in base64", gcm(encoded, kek())
    foreign = b"content-type: Message/RFC822; x=y\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + ORIGINAL
    yield "foreign-payload-header", "the payload's header as others write it", gcm(foreign, kek())
    yield "garbage-inside", "the layer inside is not CMS", gcm(parts.entity("authEnveloped-data", b"garbage"), kek())
    signed_only = parts.entity("signed-data", b"0\x80")
    yield "signed-inside", "SignedData inside, without a layer of its own", gcm(signed_only, kek())
    for name, comment, original in (
        ("bare-lf", "a line of the original that ends in LF", b"Subject: x\n\nhello\r\n"),
        ("bare-cr", "a CR alone in the original", b"Subject: x\r\n\r\nhel\rlo\r\n"),
        ("cr-at-end", "a CR at the end of the original", b"Subject: x\r\n\r\nhello\r"),
        ("first-line-blank", "an original that begins with a blank", b" continued\r\nSubject: x\r\n\r\n"),
        ("nul-in-header", "a NUL in the header of the original", b"Subject: x\0y\r\n\r\nhello\r\n"),
        ("first-line-tab", "an original that begins with a tab", b"\tcontinued\r\n\r\n"),
    ):
        yield name, comment, gcm(payload(original=original), kek())


def _names() -> Iterator[Case]:
    sealed = gcm(PAYLOAD, kek())
    place = (*_FIRST, 1, 0)
    for name, comment, identifier in (
        ("key-id-empty", "an empty key_ID", b""),
        ("key-id-not-utf-8", "a key_ID that is not UTF-8", b"key-\xff"),
        ("key-id-line-end", "a key_ID with a line end", b"key\r\n"),
        ("key-id-nul", "a key_ID with a NUL", b"key-1\0"),
        ("key-id-long", "a key_ID of 257 characters", b"k" * 257),
        ("key-id-joiner", "a key_ID with a zero-width joiner", "key\u200d1".encode()),
        ("key-id-no-break-space", "a key_ID with a space that is not U+0020", "key\u00a01".encode()),
        ("key-id-private-use", "a key_ID with a character for private use", "key\ue0001".encode()),
    ):
        content = trees.put(sealed, place, der.element(der.OCTET_STRING, identifier))
        yield case(name, "bad structure", comment, content)
    wide = "\u00e9" * 256
    yield case(
        "key-id-of-256-wide", "success", "a key_ID of 256 characters, of more octets", gcm(PAYLOAD, kek(wide)),
        keys=alices({wide: parts.octets(wide)}),
    )  # fmt: skip
    for name, comment, key_ID in (
        ("later", "a key_ID with U+1FAE8, which Unicode 14.0 does not assign", "key-\U0001fae8"),
        ("later-capital", "a key_ID with U+A7CB, which Unicode 16 folds to U+0264", "key-\ua7cb"),
    ):
        yield case(
            f"key-id-{name}", "success", comment, gcm(PAYLOAD, kek(key_ID)),
            keys=alices({key_ID: parts.octets(key_ID)}),
        )  # fmt: skip
    for name, comment, field, text in (
        ("empty-group", "an empty name of the KME group", 2, b""),
        ("long-group", "a KME group of 257 characters", 2, b"g" * 257),
        ("empty-master", "an empty master SAE", 0, b""),
    ):
        value = der.element(0x0C, text)
        yield case(name, "bad structure", comment, trees.put(sealed, (*_FIRST, 1, 1, 1, field), value))


def _messages() -> Iterator[Case]:
    """Whole messages: what stands around the CMS."""
    sealed = gcm(PAYLOAD, kek())
    text = base64.encodebytes(sealed).replace(b"\n", b"\r\n")
    fields = b"From: ann@alice.example\r\nTo: ben@bob.example\r\nSubject: [...]\r\n"
    kind = b'Content-Type: application/pkcs7-mime; smime-type=authEnveloped-data;\r\n name="smime.p7m"\r\n'
    encoding = b"Content-Transfer-Encoding: base64\r\n"
    whole = fields + kind + encoding + b"\r\n" + text
    other_kind = kind.replace(b"authEnveloped-data", b'"authenticated-ENVELOPED-data"').replace(b"pkcs7", b"x-pkcs7")
    for name, expect, comment, message in (
        ("message", "success", "a whole message", whole),
        ("message-other-type", "success", "the other names of the type", whole.replace(kind, other_kind)),
        ("message-binary", "success", "binary instead of base64",
         fields + kind + encoding.replace(b"base64", b"binary") + b"\r\n" + sealed),
        ("message-one-line", "success", "base64 in one line", whole.replace(text, base64.b64encode(sealed))),
        ("message-blanks", "success", "blanks and tabs among base64", whole.replace(text[60:], b" \t" + text[60:] + b" \r\n\r\n")),
        ("message-other-subject", "success", "a subject from elsewhere", whole.replace(b"[...]", b"Hello")),
        ("message-footer", "bad structure", "a mailing list's footer", whole + b"-- \r\nthe list\r\n"),
        ("message-quoted-printable", "bad structure", "not base64", whole.replace(b"base64", b"quoted-printable")),
        ("message-no-encoding", "bad structure", "no transfer encoding", whole.replace(encoding, b"")),
        ("message-two-encodings", "bad structure", "two fields of one name", whole.replace(encoding, encoding * 2)),
        ("message-two-types", "bad structure", "two types", whole.replace(kind, kind + b"Content-Type: text/plain\r\n")),
        ("message-cut", "bad structure", "the body without its end", whole[:-7]),
        ("message-empty", "not for us", "a message without body", whole[: -len(text)]),
        ("message-text", "not for us", "ordinary mail of a peer", fields + b"Content-Type: text/plain\r\n\r\nhello\r\n"),
        ("message-enveloped", "not for us", "mail that announces EnvelopedData", whole.replace(b"authEnveloped", b"enveloped")),
        ("message-from-line", "success", "the first line of a mailbox file in front", b">>From ann@alice.example\r\n" + whole),
        ("message-line-before", "not for us", "a line that is no field before the type: the header ends there",
         fields + b"no field\r\n" + kind + encoding + b"\r\n" + text),
        ("message-line-after", "not for us", "a line that is no field after the type: the body begins with it, and names no key",
         whole.replace(encoding, encoding + b"no field\r\n")),
        ("message-encoding-comment", "bad structure", "a comment in the transfer encoding",
         whole.replace(b"base64\r\n", b"base64 (MIME)\r\n")),
        ("message-type-comment", "not for us", "a comment in the type", whole.replace(b"data;", b"data (CMS);")),
        ("message-type-folded", "success", "a fold before the type and behind each semicolon, and one more semicolon",
         whole.replace(kind, b'Content-Type:\r\n application/pkcs7-mime;\r\n\tname="a\\"b"; \r\n smime-type=authEnveloped-data;\r\n')),
        ("message-type-two-folds", "not for us", "two folds behind a semicolon", whole.replace(b"data;\r\n", b"data;\r\n \r\n")),
        ("message-type-said-twice", "not for us", "smime-type twice, with one value",
         whole.replace(b"; smime-type=authEnveloped-data", b"; smime-type=authEnveloped-data" * 2)),
        ("message-type-extended", "not for us", "a parameter in a form of RFC 2231", whole.replace(b'name="', b"""name*=utf-8''x; x=\"""")),
        ("message-type-long", "not for us", "a type of more than 8192 octets", whole.replace(b"smime.p7m", b"x" * 8192)),
    ):  # fmt: skip
        made = case(name, expect, comment, sealed)
        yield replace(made, content=message, form="message")
    unreadable = case(
        "not-asn1-stranger", "not for us", "text instead of CMS, from nobody's domain", b"This is not CMS.\r\n"
    )
    yield replace(unreadable, sender="x@stranger.example")
    comment = "one octet too many, from nobody's domain"
    yield case("trailing-stranger", "bad structure", comment, sealed + b"\0", sender="x@stranger.example")
    yield case("trailing-null-sender", "bad structure", "one octet too many, in a bounce", sealed + b"\0", sender="")
