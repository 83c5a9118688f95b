"""Fuzz targets for messages: MIME taken apart and put together, and the tripwire against two other readers.
Standard: RFC 5322, RFC 2045; email and pyasn1 of other authors say what a message that passes the tripwire is.
"""

from __future__ import annotations

import email
import re
from contextlib import suppress
from email.parser import BytesHeaderParser
from typing import Any

from pyasn1.codec.der.decoder import decode
from pyasn1.error import PyAsn1Error
from pyasn1.type import namedtype, tag, univ
from pyasn1_alt_modules import rfc5083, rfc5652

from relay.errors import BadStructure, MalformedMessage, TrippedWire
from relay.formats import mime
from relay.journey import tripwire
from tests.system.fuzz.target import Found, Target, check
from tests.testlib import hostile, mails
from tests.testlib.payloads import payload
from tests.vectors.case import read_all

WORDS = (
    b"\r\n", b"\r\n\r\n", b"\r", b"\n", b" ", b"\t", b"\r\n ", b"\r\n\t", b":", b" :", b"\0", b"\xff", b"\x0b", b"\x0c", b"\x85",
    b"\x1c", b"Bcc: hidden@bob.example\r\n", b"bcc : hidden@bob.example\r\n", b"Resent-Bcc:", b"Return-Path: <x>\r\n",
    b"Received: by x; now\r\n", b"Subject: Zeus\r\n", b"Subject: [...]\r\n", b"X-QuMail-Protection: aes; peer=bob\r\n",
    b"MIME-Version: 1.0\r\n", b"Content-Type: text/plain\r\n", b"Content-Type: message/rfc822\r\nQuMail-Sealed-Envelope:\r\n ",
    b'Content-Type: application/pkcs7-mime; smime-type=authEnveloped-data;\r\n name="smime.p7m"\r\n',
    b"content-type:application/x-pkcs7-mime;smime-type=authenveloped-DATA", b"smime-type*0*=utf-8''auth", b"smime-type*=",
    b"no-such-charset''%ff", b"smime-type=signed-data", b"Content-Transfer-Encoding: base64\r\n", b"binary", b"7bit",
    b"quoted-printable", b'"', b"\\", b"=", b"==", b"=?utf-8?q?x?=", b"MIAGCyqGSIb3DQEJEAEX", b".\r\n", b"From x\r\n", b"(", b";",
)  # fmt: skip


PROTECTIONS = ("aes", "otp", "pqc", "rsa+aes", "pqc+hqc-256")


def seeds() -> list[bytes]:
    """Messages of all kinds: plain ones, sealed ones, payloads."""
    cases = [case for case in read_all() if len(case.content) < 6000]
    sealed = [mime.sealed_message(mails.plain(), case.content) for case in cases if case.form == "cms"]
    hidden = mails.plain().replace(b"Subject:", b"Bcc: hidden@bob.example,\r\n more@bob.example\r\nSubject:")
    plain = [mails.plain(), mails.eight_bit(), mails.random_attachment(300), hidden, b"", b"\r\n", b"no header\r\n"]
    payloads = [payload(mails.plain()), bytes(mime.wrap_enveloped(b"0\x80")), bytes(mime.wrap_signed(b"0\x80"))]
    return [*plain, *payloads, *(case.content for case in cases if case.form == "message"), *sealed[:40]]


def parts(data: bytes) -> None:
    """Every function of mime.py that reads a message."""
    try:
        header, body = mime.split(data)
    except MalformedMessage:
        return
    check(data in (header + body, header + b"\r\n" + body), "header and body are not the message")
    fields = list(mime.fields(header))
    check(
        b"".join(raw for _, raw in fields) in header or _lines_between(header, fields), "fields are not of the header"
    )
    with suppress(MalformedMessage):
        mime.check_carriable(data, max_hops=20)
        check(not re.search(rb"\r(?!\n)|(?<!\r)\n", data), "a bare CR or LF is said to be carriable")
        check(b"\0" not in header, "a NUL in the header is said to be carriable")
        _left_out(data)
        _wrappers(data, header)
    with suppress(BadStructure):
        mime.is_sealed(data)
        mime.sealed_content(data)
    with suppress(BadStructure):
        kind, inner, envelope = mime.unwrap(data)
        check(
            kind != "message" or bytes(mime.wrap_payload(inner, envelope)) == data, "a payload is not as it is written"
        )


def _lines_between(header: bytes, fields: list[tuple[bytes, bytes]]) -> bool:
    """Whether the fields stand in the header in their order, with lines that are no fields between them."""
    position = 0
    for _, raw in fields:
        found = header.find(raw, position)
        if found < 0:
            return False
        position = found + len(raw)
    return True


def _left_out(data: bytes) -> None:
    """Fields are left out whole up to the empty line, and nothing else is."""
    header = mime.searched_header(data)
    fields = list(mime.fields(header))
    without = mime.without_hidden_fields(data)
    left = mime.searched_header(without)
    kept = [field for field in fields if field[0] not in mime.NEVER_CARRIED]
    check(list(mime.fields(left)) == kept, "other fields than those of the names given were changed")
    check(without[len(left) :] == data[len(header) :], "the body was changed")
    for name in BytesHeaderParser().parsebytes(left).keys():  # noqa: SIM118 - a Message is no mapping
        check(name.strip().lower() not in ("bcc", "resent-bcc"), "another reader still sees a Bcc field")
    if len(kept) == len(fields):
        check(without == data, "a message without hidden fields was changed")
    marked = mime.marked(data, "aes", "alice", "other")
    names = [name for name, _ in mime.fields(mime.searched_header(marked))]
    check(names.count(b"x-qumail-protection") == 1, "a mark from outside is still there")


def _wrappers(data: bytes, header: bytes) -> None:
    """What is wrapped comes back, and shows nothing but the visible fields."""
    envelope = data[:100]
    wrapped = mime.unwrap(bytes(mime.wrap_payload(data, envelope)))
    check(wrapped == ("message", data, envelope), "a payload is not what was wrapped")
    sealed = mime.sealed_message(data, b"0" + data[:200])
    with suppress(MalformedMessage):
        mime.split(sealed)
        check(mime.sealed_content(sealed) == b"0" + data[:200], "a sealed message has other content")
        mime.check_carriable(sealed, max_hops=20)
        shown = b"".join(raw for name, raw in mime.fields(header) if name in mime.VISIBLE_FIELDS)
        end = b"" if not shown or shown.endswith(b"\r\n") else b"\r\n"
        check(sealed.startswith(shown + end + b"Subject: [...]\r\n"), "more is visible than the visible fields")
        _agree(shown + end)


def _agree(shown: bytes) -> None:
    """The tripwire reads what is shown as the parser does."""
    try:
        names = set(tripwire.shown_fields(shown))
    except TrippedWire as error:
        raise Found(f"what may be carried trips the wire: {error}") from error
    check(names == {name for name, _ in mime.fields(shown)}, "the tripwire sees other fields than the parser")


def wire(data: bytes) -> None:
    """The tripwire: what passes is a sealed message for two readers that share no code with it."""
    for protection in PROTECTIONS:
        with suppress(TrippedWire):
            tripwire.check_sealed(data, protection)
            _is_sealed(data)


def _is_sealed(data: bytes) -> None:
    message = email.message_from_bytes(data)
    check(not message.defects and not message.is_multipart(), "it passes, and the message is broken")
    shown = {name.lower().encode() for name in message.keys()}  # noqa: SIM118
    check(shown <= tripwire.MAY_SHOW, f"it passes, and shows {shown - tripwire.MAY_SHOW}")
    check(message.get_all("subject") == ["[...]"], "it passes, and shows a subject")
    check(message.get_content_type() == "application/pkcs7-mime", "it passes as another type")
    _, _, body = data.partition(b"\r\n\r\n")
    check(re.fullmatch(rb"[A-Za-z0-9+/=\r\n]+", body), "it passes with something beside base64")
    der = message.get_payload(decode=True)
    try:
        outer, rest = decode(der, asn1Spec=rfc5652.ContentInfo())
        inner, more = decode(bytes(outer["content"]), asn1Spec=_sealed_form())
    except PyAsn1Error as error:
        raise Found("it passes, and is no AuthEnvelopedData") from error
    check(not rest and not more, "it passes with octets behind")
    check(outer["contentType"] == rfc5083.id_ct_authEnvelopedData, "it passes as another content type")
    check(len(inner["recipientInfos"]) > 0 and len(inner["mac"]) == 16, "it passes, and nobody could open it")


def _sealed_form() -> univ.Sequence:
    """AuthEnvelopedData (RFC 5083, 2.1) without its optional parts; whether its recipients can open it is not looked at."""
    octets = univ.OctetString().subtype(implicitTag=tag.Tag(tag.tagClassContext, tag.tagFormatSimple, 0))
    encrypted = _sequence(contentType=univ.ObjectIdentifier(), algorithm=univ.Any(), encryptedContent=octets)
    recipients = univ.SetOf(componentType=univ.Any())
    return _sequence(version=univ.Integer(), recipientInfos=recipients, encrypted=encrypted, mac=univ.OctetString())


def _sequence(**parts: Any) -> univ.Sequence:
    named = (namedtype.NamedType(name, kind) for name, kind in parts.items())
    return univ.Sequence(componentType=namedtype.NamedTypes(*named))


MIME = Target("mime", parts, seeds, WORDS, hostile.MAKERS)
TRIPWIRE = Target("tripwire", wire, seeds, WORDS, hostile.MAKERS, seconds_a_mib=len(PROTECTIONS))
