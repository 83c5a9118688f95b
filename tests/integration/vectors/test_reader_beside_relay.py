"""What the relay seals the independent reader opens; whatever is changed, both open it to the same or neither does.
Standard: relay/FORMAT.md. The relay is a black box here. The long form tries 2,000 for each kind of change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from random import Random

import pytest
from hypothesis import assume, given, settings, strategies as st

from tests.reader import der, envelope, mime
from tests.reader.mailboxes import mailbox
from tests.testlib.der_edits import Element, edited, parse
from tests.testlib.long import sized
from tests.testlib.resealing import body_of, inside, padded, redigested, resealed, resigned, retagged
from tests.testlib.side_by_side import BEN, PROTECTIONS, SENDER, Came, SealedSample, by_reader, by_relay, seal

ORIGINAL = b"From: ann@alice.example\r\nTo: ben@bob.example\r\nSubject: Figures\r\n\r\n42 and 43\r\n"
OCTETS = [b"", b"\0", b" ", b"\t", b'"', b";", b"=", b":", b"A", b"z", b"\xff", b"\xc3\xa9", b"(", b")", b"*", b"'"]
"""What edits put in. No CR or LF: a line ends in both."""

_NUMBER = sized(25, 2000)
_TRIES = settings(max_examples=_NUMBER, deadline=None, derandomize=_NUMBER < 100)
randoms = st.integers(0, 2**32).map(Random)
protections = st.sampled_from(PROTECTIONS)
lines = st.binary(max_size=40).filter(lambda line: b"\r" not in line and b"\n" not in line)
originals = st.lists(lines, max_size=8).map(b"\r\n".join).filter(lambda each: not envelope.cannot_be_carried(each))
local_parts = st.text(
    st.characters(blacklist_categories=("C", "Z"), blacklist_characters='@()<>[]:;,\\"'), min_size=1, max_size=20
)
domains = st.sampled_from(["bob.example", "sales.bob.example", "bücher.example", "xn--bcher-kva.example"])


@cache
def _sealed(protection: str) -> SealedSample:
    return asyncio.run(seal(ORIGINAL, protection))


def _agree(message: bytes, mail: SealedSample) -> Came:
    """Both open it to the same, or neither does; what came of it at the reader."""
    reader, relay = by_reader(message, mail.keys), by_relay(message, mail.keys)
    if reader.opened or relay.opened:
        assert reader == relay
    return reader


def _bytes_edited(octets: bytes, random: Random) -> bytes:
    """One or two places of `octets` cut, filled or overwritten."""
    changed = bytearray(octets)
    for _ in range(random.randrange(1, 3)):
        at = random.randrange(len(changed) + 1)
        changed[at : at + random.randrange(3)] = random.choice([*OCTETS, random.randbytes(1).strip(b"\r\n")])
    return bytes(changed)


def _under_the_seals(mail: SealedSample, protection: str, change: Callable[[bytes, str], bytes]) -> bytes:
    """The message with another payload, or SignedData, inside its innermost layer, and right tags all around."""
    level, *outer = protection.split("+")

    def innermost(octets: bytes) -> bytes:
        content = change(inside(octets, mail.keys), level)
        return resealed(octets, mail.keys, padded(content, len(content) + 8) if level == "otp" else content)

    if not outer:
        return mail.message(innermost(mail.der))
    layer = innermost(inside(mail.der, mail.keys).removeprefix(mime.LAYER))
    return mail.message(resealed(mail.der, mail.keys, mime.LAYER + layer))


def _payload_edited(payload: bytes, random: Random) -> bytes:
    """Another header of the payload, or another sealed envelope in it that is folded as it must be."""
    octets, original = envelope.split(payload)
    if random.randrange(3) == 0:
        header, empty, original = payload.partition(b"\r\n\r\n")
        return _bytes_edited(header, random) + empty + original
    changed = edited(octets, random) if random.randrange(3) else _bytes_edited(octets, random)
    return envelope.BEGIN + envelope.folded(changed) + b"\r\n" + original


class TestSealedByTheRelay:
    @_TRIES
    @given(protections, originals, st.lists(st.builds("{}@{}".format, local_parts, domains), min_size=1, max_size=4))
    def test_the_reader_opens_it_to_the_same_original_for_the_same_recipients(
        self, protection: str, original: bytes, recipients: list[str]
    ) -> None:
        assume(len(set(map(mailbox, recipients))) == len(recipients))
        mail = asyncio.run(seal(original, protection, recipients=tuple(recipients), pad_key=256))
        arriving = [*recipients[:2], "eve@bob.example"]
        came = by_reader(mail.message(), mail.keys, arriving)
        assert (came.kind, came.original, came.sender) == ("success", original, SENDER)
        assert came.due == {*recipients[:2]}
        assert came.aside == {"eve@bob.example"} - {*recipients}

    @pytest.mark.parametrize("protection", PROTECTIONS)
    def test_the_relay_opens_it_as_the_reader_does(self, protection: str) -> None:
        mail = _sealed(protection)
        assert _agree(mail.message(), mail) == Came("success", ORIGINAL, SENDER, frozenset({BEN}))


class TestChangedByAnybody:
    @_TRIES
    @given(protections, randoms)
    def test_elements_of_a_layer(self, protection: str, random: Random) -> None:
        mail = _sealed(protection)
        _agree(mail.message(edited(mail.der, random, random.randrange(1, 3))), mail)

    @_TRIES
    @given(protections, randoms)
    def test_octets_of_a_layer(self, protection: str, random: Random) -> None:
        mail = _sealed(protection)
        _agree(mail.message(_bytes_edited(mail.der, random)), mail)

    @_TRIES
    @given(protections, randoms)
    def test_the_outer_header(self, protection: str, random: Random) -> None:
        mail = _sealed(protection)
        header, empty, body = mail.message().partition(b"\r\n\r\n")
        fields = header.split(b"\r\n")
        at = random.randrange(len(fields))
        fields[at] = _bytes_edited(fields[at], random)
        _agree(b"\r\n".join(fields) + empty + body, mail)

    @_TRIES
    @given(protections, randoms)
    def test_the_base64(self, protection: str, random: Random) -> None:
        mail = _sealed(protection)
        header, empty, body = mail.message().partition(b"\r\n\r\n")
        _agree(header + empty + _bytes_edited(body, random), mail)

    @_TRIES
    @given(protections, randoms)
    def test_der_made_ber(self, protection: str, random: Random) -> None:
        """Lengths of every form, octets in chunks: it opens to the same."""
        mail = _sealed(protection)
        root = parse(mail.der)[0]
        _made_ber(root, random)
        root.form = "indefinite"
        assert _agree(mail.message(root.encode()), mail).opened


class TestSealedAnewByWhoHasTheKeys:
    @_TRIES
    @given(st.sampled_from(["otp", "aes"]), randoms)
    def test_the_payload(self, protection: str, random: Random) -> None:
        mail = _sealed(protection)
        _agree(_under_the_seals(mail, protection, lambda payload, _: _payload_edited(payload, random)), mail)

    @_TRIES
    @given(st.sampled_from(["pqc", "rsa", "pqc+aes", "rsa+aes"]), randoms)
    def test_the_payload_signed_anew(self, protection: str, random: Random) -> None:
        def change(entity: bytes, level: str) -> bytes:
            root = parse(entity.removeprefix(mime.SIGNED))[0]
            content = root.children[1].children[0].children[2].children[1].children[0]
            content.contents = _payload_edited(content.contents, random)
            return mime.SIGNED + resigned(redigested(root.encode(), level), level)

        mail = _sealed(protection)
        _agree(_under_the_seals(mail, protection, change), mail)

    @_TRIES
    @given(st.sampled_from(["pqc", "rsa"]), randoms)
    def test_elements_of_signed_data(self, level: str, random: Random) -> None:
        def change(entity: bytes, level: str) -> bytes:
            changed = edited(entity.removeprefix(mime.SIGNED), random)
            with suppress(ValueError, IndexError, StopIteration):
                changed = resigned(changed, level)
            assume(changed[:2] != b"\x30\x80")
            return mime.SIGNED + changed

        mail = _sealed(level)
        _agree(_under_the_seals(mail, level, change), mail)

    @_TRIES
    @given(st.sampled_from(["pqc", "rsa"]), randoms)
    def test_signed_attributes(self, level: str, random: Random) -> None:
        def change(entity: bytes, level: str) -> bytes:
            root = parse(entity.removeprefix(mime.SIGNED))[0]
            signer = root.children[1].children[0].children[-1].children[0]
            attributes = next(child for child in signer.children if child.identifier == 0xA0)
            changed = parse(edited(b"".join(each.encode() for each in attributes.children), random))
            attributes.children = sorted(changed, key=Element.encode) if random.randrange(2) else changed
            return mime.SIGNED + resigned(root.encode(), level)

        mail = _sealed(level)
        try:
            message = _under_the_seals(mail, level, change)
        except (ValueError, IndexError):
            assume(False)
        _agree(message, mail)

    @_TRIES
    @given(randoms)
    def test_the_parameters_of_a_pad(self, random: Random) -> None:
        mail = _sealed("otp")
        root = parse(mail.der)[0]
        algorithm = root.children[1].children[0].children[2].children[1]
        parameters = edited(algorithm.children[1].encode(), random)
        with suppress(ValueError, IndexError):
            algorithm.children[1:] = parse(parameters)
            message = mail.message(retagged(root.encode(), [key for _, key in sorted(_by_id(mail))]))
            _agree(message, mail)


def _by_id(mail: SealedSample) -> list[tuple[str, bytes]]:
    return [(name.key_id, key) for name, key in mail.keys.items()]


def _made_ber(element: Element, random: Random) -> None:
    """Other lengths, and OCTET STRINGs in chunks (encryptedContent, which is one, too)."""
    string = element.identifier == 0x04 or (element.identifier == 0x80 and len(element.contents) > 100)
    if string and random.randrange(3) == 0:
        contents = b"".join(child.encode() for child in element.children) or element.contents
        cuts = [0, *sorted(random.randrange(len(contents) + 1) for _ in range(random.randrange(4))), len(contents)]
        element.children = [Element(0x04, contents[start:end]) for start, end in pairwise(cuts)]
        element.identifier |= 0x20
    elif not string:
        for child in element.children:
            _made_ber(child, random)
    element.form = (
        random.choice(["indefinite", "long"]) if element.identifier & 0x20 else random.choice(["minimal", "long"])
    )


# Where the page and the relay differ, or the page leaves open what the relay decides


def _aes(payload: Callable[[bytes], bytes]) -> tuple[bytes, SealedSample]:
    mail = _sealed("aes")
    return _under_the_seals(mail, "aes", lambda content, _: payload(content)), mail


def _aes_around(level: str) -> tuple[bytes, SealedSample]:
    mail = asyncio.run(seal(ORIGINAL, f"{level}+aes"))
    return mail.message(), mail


def _signed_data_in_ber() -> tuple[bytes, SealedSample]:
    mail = _sealed("pqc")

    def change(entity: bytes, _: str) -> bytes:
        root = parse(entity.removeprefix(mime.SIGNED))[0]
        root.form = "indefinite"
        return mime.SIGNED + root.encode()

    return _under_the_seals(mail, "pqc", change), mail


def _header_of_signed_data(header: bytes) -> tuple[bytes, SealedSample]:
    mail = _sealed("pqc")
    return _under_the_seals(mail, "pqc", lambda entity, _: header + entity.removeprefix(mime.SIGNED)), mail


def _name_in_chunks() -> tuple[bytes, SealedSample]:
    mail = _sealed("aes")
    root = parse(mail.der)[0]
    root.form = "indefinite"
    name = root.children[1].children[0].children[1].children[0].children[1].children[1].children[1].children[0]
    name.children, name.identifier = [Element(0x04, name.contents)], 0x2C
    return mail.message(root.encode()), mail


def _recipient_twice() -> tuple[bytes, SealedSample]:
    def change(payload: bytes) -> bytes:
        read = envelope.read(envelope.split(payload)[0])
        names = (der.tlv(der.UTF8, name.encode()) for name in (read.master, read.slave, read.layers))
        both = (der.tlv(der.UTF8, name) for name in (b"ben@bob.example", b"ben@BOB.example"))
        written = der.tlv(
            der.SEQUENCE,
            der.integer(1),
            der.tlv(der.OCTET_STRING, read.id),
            *names,
            der.tlv(0x18, datetime.now(UTC).strftime("%Y%m%d%H%M%SZ").encode()),
            der.tlv(der.UTF8, SENDER.encode()),
            der.tlv(der.SEQUENCE, *both),
        )
        return envelope.BEGIN + envelope.folded(written) + b"\r\n" + ORIGINAL

    return _aes(change)


@pytest.mark.parametrize(
    "made",
    [lambda: _aes_around("otp"), lambda: _aes_around("aes"), _recipient_twice, _name_in_chunks],
    ids=["otp", "aes", "twice", "chunks"],
)
def test_neither_takes_a_layer_around_quantum_keys_a_recipient_named_twice_or_a_name_in_chunks(
    made: Callable[[], tuple[bytes, SealedSample]],
) -> None:
    assert not _agree(*made()).opened


@pytest.mark.parametrize(
    "made",
    [
        _signed_data_in_ber,
        lambda: _header_of_signed_data(b"content-type: application/x-pkcs7-mime; smime-type=signed-data\r\n\r\n"),
    ],
    ids=["BER", "header"],
)
def test_both_take_signed_data_in_its_other_forms(made: Callable[[], tuple[bytes, SealedSample]]) -> None:
    assert _agree(*made()).opened


def test_what_the_relay_writes_is_der_and_its_own_base64() -> None:
    for protection in PROTECTIONS:
        mail = _sealed(protection)
        assert body_of(mail.message()) == mail.der
        der.check(mail.der)
