"""The test vectors of the sealed envelope: its form, what it says, who gets the mail, and when.
Standard: relay/FORMAT.md, "Sealed envelope" and "The receiver's order".

All are at level aes, rightly sealed by somebody who has the key, so that each binds the key.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

from relay.formats import cms
from relay.formats.cms import der
from tests.vectors import made_aes, parts, trees
from tests.vectors.case import ALICE, NOW, RECIPIENT, SENDER, Case, Seen
from tests.vectors.parts import ORIGINAL, gcm, kek, octets

RIGHT = parts.envelope().encode()
VERSION, ID, MASTER, SLAVE, LAYERS, TIME, FROM, TO = ((index,) for index in range(8))
"""Where the fields of the envelope are."""
ANN, BEN, BEA, CAL = SENDER, RECIPIENT, "bea@bob.example", "cal@bob.example"
WINDOW, SKEW, SECOND = timedelta(days=7), timedelta(minutes=10), timedelta(seconds=1)


def envelope_cases() -> Iterator[Case]:
    """What opens, and then what does not."""
    yield from _recipients()
    yield from _senders()
    yield from _times()
    yield from _seen()
    for name, comment, content in (*_missing_and_doubled(), *_fields(), *_addresses()):
        yield _case(name, "bad structure", comment, _sealed(content))
    for name, comment, payload in _headers():
        yield _case(f"header-{name}", "bad structure", comment, gcm(payload, kek()))
    yield from _not_named()


def _case(name: str, expect: str, comment: str, content: bytes, **more: Any) -> Case:
    made = made_aes.case(name, expect, comment, content, binds=True, **more)
    return replace(made, name=f"envelope-{name}")


def _sealed(envelope: bytes, original: bytes = ORIGINAL) -> bytes:
    """A message with this envelope, whatever it is."""
    return gcm(_payload(envelope, original), kek())


def _payload(envelope: bytes, original: bytes = ORIGINAL) -> bytes:
    text = base64.b64encode(envelope)
    lines = (b" " + text[start : start + 72] + b"\r\n" for start in range(0, len(text), 72))
    return b"Content-Type: message/rfc822\r\nQuMail-Sealed-Envelope:\r\n" + b"".join(lines) + b"\r\n" + original


def _saying(**changes: Any) -> bytes:
    return _sealed(parts.envelope(**changes).encode())


def _recipients() -> Iterator[Case]:
    two = _saying(recipients=(BEN, BEA))
    yield _case("two-recipients", "success", "two recipients, both arrive", two, recipients=(BEN, BEA), due=(BEN, BEA))
    yield _case("one-of-two", "success", "two recipients, one arrives: the other one comes later", two)
    added = "a recipient who was added on the way gets nothing"
    yield _case("one-added", "success", added, _saying(), recipients=(BEA, BEN), due=(BEN,), aside=(BEA,))
    yield _case(
        "two-of-four", "success", "some are named, some arrive", two, recipients=(BEA, CAL, "dan@bob.example"), due=(BEA,),
        aside=(CAL, "dan@bob.example"),
    )  # fmt: skip
    yield _case(
        "domain-case",
        "success",
        "the domain arrives in other letters",
        _saying(),
        recipients=("ben@BOB.example",),
        due=("ben@BOB.example",),
    )
    wide = "grü.ße@bob.example"
    yield _case("utf-8-recipient", "success", "an address beyond US-ASCII", _saying(recipients=(wide,)), recipients=(wide,),
                due=(wide,))  # fmt: skip
    composed, decomposed = "\u00e9@bob.example", "e\u0301@bob.example"
    yield _case(
        "decomposed", "not named", "the same letter, composed and decomposed", _saying(recipients=(composed,)),
        recipients=(decomposed,),
    )  # fmt: skip
    for name, arriving in (("quoted", '"ben"@bob.example'), ("backslash", '"b\\en"@bob.example')):
        yield _case(
            name, "success", "needless quotes, as it arrives", _saying(), recipients=(arriving,), due=(arriving,)
        )
    yield _case(
        "local-case", "not named", "the local part arrives in other letters", _saying(), recipients=("Ben@bob.example",)
    )
    ascii_ = "ben@xn--bcher-kva.example"
    for name, arriving in (
        ("domain-as-u-label", "ben@b\u00fccher.example"),
        ("domain-as-u-label-in-capitals", "ben@B\u00dcCHER.EXAMPLE"),
        ("domain-as-u-label-decomposed", "ben@bu\u0308cher.example"),
    ):
        yield _case(
            name, "success", "it arrives as U-label, and is sealed as A-label", _saying(recipients=(ascii_,)),
            recipients=(arriving,), due=(arriving,),
        )  # fmt: skip
    for name, comment, sealed, arriving in (
        ("domain-of-later-letter", "a letter that Unicode 14.0 does not assign is in no U-label", "xn--1f0d", "\ua7cb"),
        ("domain-full-width", "full-width letters are not mapped", "bob", "\uff42ob"),
        ("domain-ignorable", "what programs leave out is in no U-label", "xn--bcher-kva", "b\u00fc\u034fcher"),
    ):
        named = _saying(recipients=(f"ben@{sealed}.example",))
        yield _case(name, "not named", comment, named, recipients=(f"ben@{arriving}.example",))
    for name, comment, address, arriving in (
        ("later-character", "U+1FAE8, which Unicode 14.0 does not assign", "x\U0001fae8y@bob.example", ""),
        ("later-capital", "U+A7CB, a capital letter of Unicode 16", "x\ua7cby@bob.example", ""),
        ("needed-quotes", "a local part that needs quotes", '"b,n\\"\\\\"@bob.example', '"b\\,n\\"\\\\"@bob.example'),
        ("empty-local-part", "a local part of no characters", '""@bob.example', ""),
        ("dots", "two dots in a row need quotes, and arrive without", '"b..n"@bob.example', "b..n@bob.example"),
        ("literal", "an address literal", "ben@[ipv6:2001:db8::1]", "ben@[IPv6:2001:DB8::1]"),
    ):
        arriving = arriving or address
        named = _saying(recipients=(address,))
        yield _case(f"recipient-{name}", "success", comment, named, recipients=(arriving,), due=(arriving,))
    yield _case("local-part-as-a-label", "not named", "local parts are not", _saying(recipients=("b\u00fccher@bob.example",)),
                recipients=("xn--bcher-kva@bob.example",))  # fmt: skip
    yield _case(
        "nobody-named",
        "not named",
        "none of two arriving recipients is named",
        _saying(recipients=(CAL,)),
        recipients=(BEN, BEA),
    )
    local = _saying(recipients=("postmaster",))
    yield _case(
        "local-only", "success", "postmaster has no domain", local, recipients=("postmaster",), due=("postmaster",)
    )
    aliases = {BEN: ("box@mail.example", "copy@mail.example")}
    yield _case(
        "alias", "success", "Bob's own alias table", _saying(), recipients=("box@mail.example",), due=("box@mail.example",),
        aliases=aliases,
    )  # fmt: skip
    yield _case(
        "alias-and-self", "success", "an alias and its recipient", _saying(), recipients=(BEN, "copy@mail.example", CAL),
        due=(BEN, "copy@mail.example"), aside=(CAL,), aliases=aliases,
    )  # fmt: skip
    yield _case("alias-of-other", "not named", "an alias of somebody else", _saying(), recipients=("box@mail.example",),
                aliases={BEA: ("box@mail.example",)})  # fmt: skip
    yield _case("alias-backwards", "not named", "an alias holds in one direction", _saying(recipients=("box@mail.example",)),
                aliases=aliases)  # fmt: skip
    long = "a" * 1012 + "@bob.example"
    yield _case("long-recipient", "success", "a recipient of 1,024 characters", _saying(recipients=(long,)), recipients=(long,),
                due=(long,))  # fmt: skip
    many = tuple(f"member-{number:03}@bob.example" for number in range(100))
    listed = _saying(recipients=many)
    yield _case(
        "100-recipients",
        "success",
        "100 recipients, of whom one arrives",
        listed,
        recipients=many[41:42],
        due=many[41:42],
    )


def _senders() -> Iterator[Case]:
    null = _saying(sender="")
    yield _case("null-sender", "success", "a bounce", null, sender="", sealed_sender="")
    yield _case("null-sealed-sender", "success", "a bounce, whose MAIL FROM was changed", null, sealed_sender="")
    rewritten = "bounces+12@stranger.example"
    yield _case(
        "rewritten-sender", "success", "MAIL FROM was rewritten: the sealed one counts", _saying(), sender=rewritten
    )
    foreign = "cia@carol.example"
    sealed = _saying(sender=foreign)
    yield _case("foreign-sender", "not named", "a sender of a domain that is not Alice's", sealed)
    yield _case("foreign-sender-outside", "not named", "the same, and MAIL FROM too", sealed, sender=foreign)
    for name, forwards in (("forwards", "carol.example,dan.example"), ("forwards-any", "*")):
        peers = (ALICE._replace(forwards=forwards),)
        yield _case(name, "success", "Alice forwards mail of this domain", sealed, peers=peers, sealed_sender=foreign)
    peers = (ALICE._replace(forwards="dan.example"),)
    yield _case("forwards-other", "not named", "Alice forwards mail of another domain", sealed, peers=peers)
    umlaut = (ALICE._replace(domains="xn--bcher-kva.example"),)
    other = "ann@xn--bcher-kva.example"
    yield _case(
        "sender-as-a-label",
        "success",
        "a sender's domain as A-label",
        _saying(sender=other),
        peers=umlaut,
        sealed_sender=other,
    )
    wide = "gr\u00fc\u00dfe@alice.example"
    yield _case(
        "sender-utf-8", "success", "a sender beyond US-ASCII", _saying(sender=wide), sender=ANN, sealed_sender=wide
    )
    literal = "ann@[192.0.2.1]"
    yield _case("sender-literal", "not named", "a sender at an address literal", _saying(sender=literal))
    parent = (ALICE._replace(forwards="example"),)
    yield _case("forwards-parent", "not named", "a domain above the sender's", sealed, peers=parent)
    subdomain = "ann@mail.alice.example"
    yield _case("sender-subdomain", "not named", f"the sender {subdomain!r}", _saying(sender=subdomain))
    for name, sender in (
        ("sender-case", "ann@ALICE.Example"),
        ("sender-as-u-label", "ann@b\u00fccher.example"),
        ("sender-dot", "ann@alice.example."),
        ("sender-dots", "a..nn@alice.example"),
        ("sender-quoted", '"ann"@alice.example'),
        ("sender-angle", '"a>nn"@alice.example'),
        ("sender-joiner", "a\u200dnn@alice.example"),
        ("sender-private-use", "a\ue000nn@alice.example"),
        ("sender-tag", "a\U000e0061nn@alice.example"),
        ("sender-no-domain", "ann"),
        ("sender-two-domains", "ann@alice.example@carol.example"),
        ("sender-blank", " "),
        ("sender-with-parameter", "minister@ministry.example> ENVID=x@alice.example"),
        ("sender-with-command", "minister@ministry.example>\r\nRCPT TO:<eve@bob.example> x@alice.example"),
        ("sender-control", "ann\x1f@alice.example"),
    ):
        yield _case(
            name,
            "bad structure",
            f"the sender {sender!a}, which is no mailbox in its one spelling",
            _saying(sender=sender),
        )
    two = (ALICE._replace(domains="alice.example,alice.test"),)
    second = "ann@alice.test"
    yield _case(
        "second-domain",
        "success",
        "the second domain of Alice",
        _saying(sender=second),
        peers=two,
        sealed_sender=second,
    )


def _times() -> Iterator[Case]:
    sealed = _saying()
    for name, expect, comment, now in (
        ("time-now", "success", "opened in the second in which it was sealed", NOW),
        ("time-last-second", "success", "opened after 7 days, to the second", NOW + WINDOW),
        ("time-too-late", "outside window", "opened one second after 7 days", NOW + WINDOW + SECOND),
        ("time-before", "success", "opened one second before 7 days", NOW + WINDOW - SECOND),
        ("time-skew", "success", "sealed 10 minutes in the future, to the second", NOW - SKEW),
        ("time-skew-inside", "success", "sealed one second less than 10 minutes in the future", NOW - SKEW + SECOND),
        ("time-future", "outside window", "sealed 10 minutes and one second in the future", NOW - SKEW - SECOND),
        ("time-far-future", "outside window", "sealed next year", NOW.replace(year=2025)),
        ("time-last-year", "outside window", "sealed last year", NOW.replace(year=2027)),
    ):
        yield _case(name, expect, comment, sealed, now=now)
    later = NOW.replace(year=2050)
    yield _case("time-2050", "success", "GeneralizedTime has no trouble with 2050", _saying(sealed_at=later), now=later)
    for name, text in (
        ("year-1", b"00010101000000Z"), ("year-9999", b"99991231235959Z"),
    ):  # fmt: skip
        yield _case(
            f"time-{name}", "outside window", "a time far away", _sealed(trees.put(RIGHT, TIME, b"\x18\x0f" + text))
        )


def _seen() -> Iterator[Case]:
    sealed = _saying(recipients=(BEN, BEA))
    fingerprint, id_ = cms.decode_enveloped(sealed).fingerprint(), octets("id", 16)
    bound = parts.binds(sealed)

    def seen(name: str, comment: str, entry: Seen, expect: str = "success", **more: Any) -> Case:
        return replace(_case(f"seen-{name}", expect, comment, sealed, seen=(entry,), bound=bound, **more), binds=())

    yield seen(
        "served",
        "a copy for who has it: nothing is delivered",
        Seen("2", id_, fingerprint, (BEN,)),
        due=(),
        served=(BEN,),
    )
    yield seen(
        "for-other",
        "a copy for the second recipient",
        Seen("2", id_, fingerprint, (BEN,)),
        recipients=(BEA,),
        due=(BEA,),
    )
    yield seen(
        "retry", "a copy for both, of whom one has it", Seen("2", id_, fingerprint, (BEN,)), recipients=(BEN, BEA), due=(BEA,),
        served=(BEN,),
    )  # fmt: skip
    yield seen("nobody-yet", "a copy that nobody has got yet", Seen("2", id_, fingerprint))
    yield seen(
        "all-served", "a copy for two who have it, and one added", Seen("2", id_, fingerprint, (BEN, BEA)),
        recipients=(BEN, BEA, CAL), due=(), served=(BEN, BEA), aside=(CAL,),
    )  # fmt: skip
    other = parts.octets("another fingerprint")
    for name, comment, entry, expect in (
        ("in-another", "its id was seen in another message", Seen("2", id_, other, (BEN,)), "replayed"),
        (
            "in-another-for-nobody",
            "its id was seen in another message, which nobody has got",
            Seen("2", id_, other),
            "replayed",
        ),
        ("of-another-sae", "another SAE used the same id", Seen("3", id_, other, (BEN,)), "success"),
        ("other-id", "another id was seen", Seen("2", octets("other id", 16), other, (BEN,)), "success"),
    ):
        yield _case(f"seen-{name}", expect, comment, sealed, seen=(entry,))


def _field(tag: int, octets: bytes) -> bytes:
    return der.element(tag, octets)


def _missing_and_doubled() -> Iterator[tuple[str, str, bytes]]:
    names = ("version", "id", "master", "slave", "layers", "time", "sender", "recipients")
    for index, name in enumerate(names):
        yield f"{name}-missing", f"the {name} left out", trees.changed(RIGHT, (index,), lambda _: [])
        yield f"{name}-doubled", f"the {name} twice", trees.doubled(RIGHT, (index,))
    later = trees.followed(trees.changed(RIGHT, ID, lambda _: []), ID, _field(0x04, octets("id", 16)))
    yield "id-after-master", "the id after the master SAE", later
    yield "extra-field", "a ninth field", trees.followed(RIGHT, TO, b"\x02\x01\x00")
    yield "extra-tagged-field", "a ninth field under a tag of its own", trees.followed(RIGHT, TO, b"\x80\x01\x00")
    yield "trailing", "octets after the envelope", RIGHT + b"\0"
    yield "trailing-element", "an element after the envelope", RIGHT + b"\x05\x00"
    yield "truncated", "the envelope without its last octet", RIGHT[:-1]
    yield "empty", "an envelope of no octets", b""
    yield "twice", "two envelopes, one after the other", RIGHT * 2
    yield "set", "a SET instead of a SEQUENCE", b"\x31" + RIGHT[1:]
    yield "long-length", "a length in more octets than it takes", RIGHT[:1] + b"\x81" + RIGHT[1:]
    yield "indefinite", "BER of indefinite length", b"\x30\x80" + RIGHT[2:] + b"\0\0"
    yield "not-asn1", "text instead of DER", b"This is no envelope"


def _fields() -> Iterator[tuple[str, str, bytes]]:
    for name, comment, place, element in (
        ("version-0", "version 0", VERSION, b"\x02\x01\x00"),
        ("version-2", "version 2", VERSION, b"\x02\x01\x02"),
        ("version-257", "version 257", VERSION, b"\x02\x02\x01\x01"),
        ("version-negative", "version -1", VERSION, b"\x02\x01\xff"),
        ("version-long", "version 1 in two octets", VERSION, b"\x02\x02\x00\x01"),
        ("version-boolean", "a BOOLEAN as version", VERSION, b"\x01\x01\xff"),
        ("id-15", "an id of 15 octets", ID, _field(4, octets("id", 15))),
        ("id-17", "an id of 17 octets", ID, _field(4, octets("id", 17))),
        ("id-empty", "an id of no octets", ID, b"\x04\x00"),
        ("id-text", "an id as text", ID, _field(0x0C, b"0123456789abcdef")),
        ("id-chunks", "an id in chunks, as in BER", ID, b"\x24\x14\x04\x08" + bytes(8) + b"\x04\x08" + bytes(8)),
        ("master-empty", "an empty master SAE", MASTER, b"\x0c\x00"),
        ("master-long", "a master SAE of 257 characters", MASTER, _field(0x0C, b"2" * 257)),
        ("master-printable-string", "a master SAE as PrintableString", MASTER, b"\x13\x012"),
        ("slave-empty", "an empty slave SAE", SLAVE, b"\x0c\x00"),
        ("slave-not-utf-8", "a slave SAE that is not UTF-8", SLAVE, b"\x0c\x01\xff"),
        ("layers-empty", "no layers", LAYERS, b"\x0c\x00"),
        ("layers-long", "layers of 257 characters", LAYERS, _field(0x0C, b"a" * 257)),
        ("time-fraction", "tenths of a second", TIME, b"\x18\x1120261125100000.5Z"),
        ("time-fraction-zero", "no tenths of a second, which DER does not write", TIME, b"\x18\x1120261125100000.0Z"),
        ("time-no-seconds", "a time without seconds", TIME, b"\x18\x0d202611251000Z"),
        ("time-no-zone", "a time without Z", TIME, b"\x18\x0e20261125100000"),
        ("time-zone", "a time with an offset", TIME, b"\x18\x1320261125100000+0000"),
        ("time-utc-time", "UTCTime", TIME, b"\x17\x0d261125100000Z"),
        ("time-leap", "the 61st second of a minute", TIME, b"\x18\x0f20261125100060Z"),
        ("time-no-such-day", "the 30th of February", TIME, b"\x18\x0f20260230100000Z"),
        ("time-text", "the time as text", TIME, _field(0x0C, b"2026-11-25T10:00:00Z")),
        ("sender-null", "NULL as sender", FROM, b"\x05\x00"),
        ("sender-ia5-string", "the sender as IA5String", FROM, _field(0x16, ANN.encode())),
    ):  # fmt: skip
        yield name, comment, trees.put(RIGHT, place, element)


def _addresses() -> Iterator[tuple[str, str, bytes]]:
    long = b"a" * 1012 + b"@bob.example"
    for name, comment, recipients in (
        ("recipients-none", "no recipient", ()),
        ("recipient-empty", "an empty recipient", (b"",)),
        ("recipient-twice", "one recipient twice", (BEN.encode(), BEN.encode())),
        ("recipient-twice-apart", "one recipient twice, another between", (BEN.encode(), BEA.encode(), BEN.encode())),
        ("recipient-long", "a recipient of 1,025 characters", (b"a" + long, BEN.encode())),
        ("recipient-not-utf-8", "a recipient that is not UTF-8", (b"\xff@bob.example", BEN.encode())),
    ):
        listed = der.sequence(*(_field(0x0C, each) for each in recipients))
        yield name, comment, trees.put(RIGHT, TO, listed)
    for name, comment, recipient in (
        ("domain-case", "a domain in capital letters", "ben@Bob.Example"),
        ("as-u-label", "a domain as U-label", "ben@b\u00fccher.example"),
        ("dot", "a domain with a dot at its end", "ben@bob.example."),
        ("two-dots", "a domain with two dots in a row", "ben@bob..example"),
        ("long-label", "a label of 64 characters", f"ben@{'b' * 64}.example"),
        ("quoted", "needless quotes", '"ben"@bob.example'),
        ("backslash", "a needless backslash", '"b\\ n"@bob.example'),
        ("dots-bare", "two dots in a row without quotes", "b..n@bob.example"),
        ("angle", "an angle bracket in quotes", '"b<n"@bob.example'),
        ("bare-space", "a space without quotes", "b n@bob.example"),
        ("no-break-space", "a space that is not U+0020", '"b\u00a0n"@bob.example'),
        ("joiner", "a zero-width joiner", "b\u200dn@bob.example"),
        ("line-separator", "a line separator", "b\u2028n@bob.example"),
        ("noncharacter", "U+1FFFF, which is no character", "b\U0001ffffn@bob.example"),
        ("literal-case", "an address literal in capital letters", "ben@[IPv6:2001:db8::1]"),
    ):
        listed = der.sequence(_field(0x0C, BEN.encode()), _field(0x0C, recipient.encode()))
        yield f"recipient-{name}", comment, trees.put(RIGHT, TO, listed)
    yield "recipients-set", "the recipients as a SET", trees.put(RIGHT, TO, _field(0x31, _field(0x0C, BEN.encode())))
    yield "recipient-alone", "a recipient without a list around it", trees.put(RIGHT, TO, _field(0x0C, BEN.encode()))
    yield "recipient-octets", "a recipient as OCTET STRING", trees.put(RIGHT, (*TO, 0), _field(0x04, BEN.encode()))
    yield "sender-long", "a sender of 1,025 characters", trees.put(RIGHT, FROM, _field(0x0C, b"a" + long))


def _headers() -> Iterator[tuple[str, str, bytes]]:
    """The payload's header has one form for each envelope, octet for octet."""
    right = _payload(RIGHT)
    kind, name = b"Content-Type: message/rfc822\r\n", b"QuMail-Sealed-Envelope:\r\n"
    head, _, _ = right.partition(b"\r\n\r\n")
    field = head[len(kind) :] + b"\r\n"
    text = base64.b64encode(RIGHT)
    whole = kind + name + b" " + text + b"\r\n"
    first = field[: len(name) + 75]
    for title, comment, header in (
        ("second-envelope", "the envelope twice", kind + field * 2),
        ("second-other-envelope", "a second envelope of another value", kind + field + _payload(parts.envelope(sender="").encode())[len(kind):].partition(b"\r\n\r\n")[0] + b"\r\n"),
        ("field-before", "a field before all others", b"MIME-Version: 1.0\r\n" + kind + field),
        ("field-between", "a field between the two", kind + b"X: y\r\n" + field),
        ("field-after", "a field after the envelope", kind + field + b"X: y\r\n"),
        ("encoding", "a Content-Transfer-Encoding", kind + field + b"Content-Transfer-Encoding: 8bit\r\n"),
        ("order", "the envelope before the type", field + kind),
        ("type-twice", "the type twice", kind * 2 + field),
        ("type-case", "the type in other letters", kind.replace(b"message", b"Message") + field),
        ("type-parameter", "the type with a parameter", kind.replace(b"822", b"822; charset=utf-8") + field),
        ("name-case", "the name in lower case", kind + field.replace(b"QuMail-Sealed", b"qumail-sealed")),
        ("name-blank", "a blank before the colon", kind + field.replace(b":", b" :", 1)),
        ("value-on-first-line", "the value begins behind the colon", kind + field.replace(b":\r\n", b":", 1)),
        ("one-line", "the value in one line", whole),
        ("folded-at-76", "lines of 76 characters", kind + name + b"".join(b" " + text[at : at + 76] + b"\r\n" for at in range(0, len(text), 76))),
        ("folded-with-tabs", "lines that begin with tabs", kind + field.replace(b"\r\n ", b"\r\n\t")),
        ("folded-with-two-blanks", "lines that begin with two blanks", kind + field.replace(b"\r\n ", b"\r\n  ")),
        ("short-first-line", "a first line that is shorter", kind + field.replace(first, first[:-20] + b"\r\n " + first[-20:])),
        ("blank-at-end", "a blank at the end of a line", kind + field.replace(b"\r\n", b" \r\n", 2)),
        ("blank-line", "a line of a blank alone", kind + field + b" \r\n"),
        ("lf", "lines that end in LF", kind + field.replace(b"\r\n ", b"\n ")),
        ("no-padding", "base64 without its padding", kind + name + _folded(base64.b64encode(_uneven())[:-2])),
        ("spare-bits", "base64 whose spare bits are not zero", kind + name + _folded(_spare_bits())),
        ("garbage", "no base64", kind + name + b" " + b"*" * 72 + b"\r\n"),
        ("url-alphabet", "the alphabet for URLs", kind + name + _folded(base64.urlsafe_b64encode(_with_high_bits()))),
        ("no-value", "the field without a value", kind + name),
        ("version-0", "no envelope, as in version 0", kind),
    ):  # fmt: skip
        yield title, comment, header + b"\r\n" + ORIGINAL
    yield "no-end", "no empty line", kind + field + b"X" + ORIGINAL.replace(b"\r\n\r\n", b"\r\n")
    yield "empty-line-first", "an empty line before all", b"\r\n" + right


def _folded(text: bytes) -> bytes:
    return b"".join(b" " + text[start : start + 72] + b"\r\n" for start in range(0, len(text), 72))


def _uneven() -> bytes:
    """An envelope whose base64 ends in "=": its length is one octet beyond a multiple of three."""
    lengths = (parts.envelope(sender="a" * number + "@alice.example").encode() for number in range(1, 4))
    return next(each for each in lengths if len(each) % 3 == 1)


def _spare_bits() -> bytes:
    text = base64.b64encode(_uneven())
    assert text.endswith(b"==")
    return text[:-3] + bytes((text[-3] + 1,)) + b"=="


def _with_high_bits() -> bytes:
    """An envelope whose base64 has a "+" or "/"."""
    made = (parts.envelope(id=octets(f"id {number}", 16)).encode() for number in range(1000))
    return next(each for each in made if set(base64.b64encode(each)) & set(b"+/"))


def _not_named() -> Iterator[Case]:
    for name, comment, changes in (
        ("master-other", "another master SAE", {"master_sae": "9"}),
        ("master-blank", "a master SAE with a blank behind", {"master_sae": "2 "}),
        ("slave-other", "sealed for another site", {"slave_sae": "3"}),
        ("slave-master", "sealed for Alice herself", {"slave_sae": "2"}),
        ("saes-swapped", "both SAEs exchanged", {"master_sae": "1", "slave_sae": "2"}),
        ("layers-otp", "another level", {"layers": "otp"}),
        ("layers-more", "more layers than there are", {"layers": "pqc+aes"}),
        ("layers-outside", "a layer outside that is missing", {"layers": "aes+aes"}),
        ("layers-case", "layers in upper case", {"layers": "AES"}),
        ("layers-blank", "layers with a blank", {"layers": "aes "}),
        ("layers-plus", "layers that end in a plus", {"layers": "aes+"}),
        ("layers-nothing-known", "a layer that nobody knows", {"layers": "x"}),
    ):
        yield _case(name, "not named", comment, _saying(**changes))
