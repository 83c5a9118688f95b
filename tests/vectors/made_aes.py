"""The test vectors of level aes, and those of the message around it.
Standard: relay/FORMAT.md, "Level aes" and "Outer message"; RFC 5083, RFC 5084.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from relay.cms.der import header
from relay.cms.recipients import MAX_NUMBER
from tests.vectors import parts, trees
from tests.vectors.case import Case
from tests.vectors.parts import ORIGINAL, PAYLOAD, flipped, gcm, kek, replaced

KEYS = {"key-1": parts.octets("key-1")}
_PARAMETERS = (*trees.ALGORITHM, 1)
_FIRST = (*trees.RECIPIENTS, 0)
_OTHER_INFO = bytes.fromhex("a40c060853040102030405060500")
_ATTRIBUTES = "3018 06092a864886f70d010903 310b 06092a864886f70d010701"


def aes_cases() -> Iterator[Case]:
    """What opens, and then what does not."""
    yield from _opening()
    yield from _failing()
    for name, comment, der in (*_algorithms(), *_structures(), *_payloads()):
        yield Case(f"aes-{name}", "bad structure", "aes", comment, der, KEYS)
    yield from _messages()


def _success(name: str, comment: str, der: bytes, original: bytes = ORIGINAL) -> Case:
    return Case(f"aes-{name}", "success", "aes", comment, der, KEYS, original=original)


def _opening() -> Iterator[Case]:
    sealed = gcm(PAYLOAD, kek())
    yield _success("plain", "as we seal", sealed)
    yield _success("no-attribute", "the key_ID alone, as other software names a key", gcm(PAYLOAD, kek(attribute=None)))
    yield _success(
        "other-key-too", "a second recipient, whose key Bob does not have", gcm(PAYLOAD, kek("key-2"), kek())
    )
    long_name = "+".join(["0b8d2f9e-2f52-4a37-9a4f-3c1f6e5f9f41"] * 6)
    named = gcm(PAYLOAD, kek(long_name))
    yield replace(
        _success("long-key-id", "a key_ID of 221 characters that is no UUID", named),
        keys={long_name: parts.octets(long_name)},
    )
    eight_bit = "Subject: x\r\n\r\nGrüße\0\r\n.\r\n".encode()
    yield _success("eight-bit", "octets above 127 and a NUL", gcm(_rfc822(eight_bit), kek()), eight_bit)
    ends = b"Subject: x\n\nbare\rline ends"
    yield _success("bare-line-ends", "CR and LF alone come out as they went in", gcm(_rfc822(ends), kek()), ends)
    yield _success("empty-original", "an original of no octets", gcm(_rfc822(b""), kek()), b"")
    foreign = b"content-type: Message/RFC822; x=y\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + ORIGINAL
    yield _success("foreign-payload-header", "the payload's header as others write it", gcm(foreign, kek()))
    yield _success("ber", "indefinite lengths and chunks, as OpenSSL streams", _ber(sealed))
    yield replace(_success("null-sender", "a bounce", sealed), sender="")


def _rfc822(original: bytes) -> bytes:
    return b"Content-Type: message/rfc822\r\n\r\n" + original


def _ber(sealed: bytes) -> bytes:
    """Every outer length indefinite, the ciphertext in chunks of 40 octets."""
    tree: Any = trees.parsed(sealed)
    version, infos, encrypted, tag = tree[1][1][1][0][1]
    kind, algorithm, (_, ciphertext) = encrypted[1]
    assert isinstance(ciphertext, bytes)
    chunks = b"".join(trees.encoded((0x04, ciphertext[start : start + 40])) for start in range(0, len(ciphertext), 40))
    end = b"\0\0"
    content = b"\x30\x80" + trees.encoded(kind) + trees.encoded(algorithm) + b"\xa0\x80" + chunks + end + end
    data = b"\x30\x80" + trees.encoded(version) + trees.encoded(infos) + content + trees.encoded(tag) + end
    return b"\x30\x80" + trees.encoded(tree[1][0]) + b"\xa0\x80" + data + end + end


def _failing() -> Iterator[Case]:
    sealed = gcm(PAYLOAD, kek())
    yield Case("aes-no-key", "no key", "aes", "Bob's KME does not have the key", sealed)
    used = Case("aes-used", "key already used", "aes", "the key was destroyed after its use", sealed)
    yield replace(used, destroyed=("key-1",))
    other = {"key-1": parts.octets("another")}
    yield Case("aes-other-octets", "wrong key", "aes", "the KMEs disagree about the key", sealed, other)
    short = {"key-1": parts.octets("key-1", 16)}
    yield Case("aes-short-key", "wrong key", "aes", "the key has 128 bits at Bob's", sealed, short)
    nonce = parts.octets("cek nonce", 12).hex()
    wrapped = kek().wrapped_cek.hex()
    for name, comment, der in (
        ("flipped-tag", "one bit of the tag", flipped(sealed)),
        ("flipped-ciphertext", "one bit of the ciphertext", flipped(sealed, -40)),
        ("flipped-nonce", "one bit of the nonce", replaced(sealed, nonce, flipped(bytes.fromhex(nonce)).hex())),
        ("flipped-wrapped-key", "one bit of the wrapped content key",
         replaced(sealed, wrapped, flipped(bytes.fromhex(wrapped)).hex())),
        ("shorter-ciphertext", "the ciphertext without its last octet",
         trees.changed(sealed, trees.CIPHERTEXT, lambda node: [(node[0], node[1][:-1])])),
    ):  # fmt: skip
        yield Case(f"aes-{name}", "bad tag", "aes", comment, der, KEYS)


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
    masses = [replace(kek(), key_identifier=f"key-{number:03}".encode()) for number in range(MAX_NUMBER + 1)]
    yield "too-many-recipients", f"{MAX_NUMBER + 1} recipients", gcm(PAYLOAD, *masses)
    yield "unknown-recipient", "a kind of recipient that nobody knows", trees.put(sealed, _FIRST, _OTHER_INFO)
    yield (
        "mixed-recipients",
        "a quantum key, and an RSA certificate",
        gcm(PAYLOAD, kek(), parts.ktri(parts.people()[1])),
    )
    other = trees.put(sealed, (*_FIRST, 1, 1, 0), bytes.fromhex("0603550403"))
    yield "unknown-key-attribute", "an OtherKeyAttribute that is not ours", other
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
    yield "no-header", "a payload without a header", gcm(ORIGINAL, kek())
    encoded = b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64.b64encode(ORIGINAL)
    yield "encoded-payload", "message/rfc822 in base64", gcm(encoded, kek())
    yield "garbage-inside", "the layer inside is not CMS", gcm(parts.entity("authEnveloped-data", b"garbage"), kek())
    layer = PAYLOAD
    for _ in range(10):
        layer = parts.entity("authEnveloped-data", gcm(layer, kek()))
    yield "too-many-layers", "ten layers", gcm(layer, kek())


def _messages() -> Iterator[Case]:
    """Whole messages: what stands around the CMS."""
    text = base64.encodebytes(gcm(PAYLOAD, kek())).replace(b"\n", b"\r\n")
    fields = b"From: ann@alice.example\r\nTo: ben@bob.example\r\nSubject: [...]\r\n"
    kind = b'Content-Type: application/pkcs7-mime; smime-type=authEnveloped-data;\r\n name="smime.p7m"\r\n'
    encoding = b"Content-Transfer-Encoding: base64\r\n"
    whole = fields + kind + encoding + b"\r\n" + text
    other_kind = kind.replace(b"authEnveloped-data", b'"authenticated-ENVELOPED-data"').replace(b"pkcs7", b"x-pkcs7")
    for name, expect, comment, message in (
        ("message", "success", "a whole message", whole),
        ("message-other-type", "success", "the other names of the type", whole.replace(kind, other_kind)),
        ("message-footer", "bad structure", "a mailing list's footer", whole + b"-- \r\nthe list\r\n"),
        ("message-quoted-printable", "bad structure", "not base64", whole.replace(b"base64", b"quoted-printable")),
        ("message-two-encodings", "bad structure", "two fields of one name", whole.replace(encoding, encoding * 2)),
        ("message-cut", "bad structure", "the body without its end", whole[:-7]),
    ):
        yield Case(f"aes-{name}", expect, "aes", comment, message, KEYS, original=ORIGINAL, form="message")
