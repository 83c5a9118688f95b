"""Taking messages apart and putting sealed ones together, on bytes.
Standard: RFC 5322 and RFC 2045; what is not understood is carried unchanged or refused, never repaired.
"""

from __future__ import annotations

import base64
import contextlib
import email

import pytest
from hypothesis import given, strategies as st

from relay.dkim.results import without_forged
from relay.errors import BadStructure, MalformedMessage
from relay.formats import mime
from relay.runtime.aio import SMALL_OCTETS
from tests.testlib import mails
from tests.testlib.speed import seconds

lines = st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\r", b"").replace(b"\n", b"")), max_size=12)
messages = lines.map(lambda parts: b"".join(part + b"\r\n" for part in parts))


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_a_payload_gives_back_exactly_the_message_in_it_and_its_envelope(message: bytes, envelope: bytes) -> None:
    payload = bytes(mime.wrap_payload(message, envelope))
    assert mime.unwrap(payload) == ("message", message, envelope)
    assert payload == mime.payload_header(envelope) + message


@given(st.binary(min_size=1, max_size=200), st.data())
def test_the_header_of_a_payload_has_one_form_only(envelope: bytes, data: st.DataObject) -> None:
    """Whatever of it is changed, it is refused, or is the header of another envelope as this one is written."""
    header = mime.payload_header(envelope)
    start = data.draw(st.integers(0, len(header)))
    end = data.draw(st.integers(start, min(len(header), start + 4)))
    piece = data.draw(st.sampled_from([b"", b" ", b"\t", b"\r\n ", b"=", b"A", b"\n", b"X: y\r\n"]))
    changed = header[:start] + piece + header[end:] + b"To: ben@bob.example\r\n\r\n"
    with contextlib.suppress(BadStructure):
        entity = mime.unwrap(changed)
        assert entity.kind == "message"
        assert changed == bytes(mime.wrap_payload(entity.content, entity.envelope))


def test_a_payload_of_format_version_0_is_refused_with_the_remedy() -> None:
    with pytest.raises(BadStructure, match="format version 0: its sender must be upgraded"):
        mime.unwrap(b"Content-Type: message/rfc822\r\n\r\n" + mails.plain())


@given(messages, st.binary(min_size=1, max_size=400))
def test_a_sealed_message_gives_back_exactly_its_content(original: bytes, der: bytes) -> None:
    sealed = mime.sealed_message(original, der)
    assert mime.is_sealed(sealed)
    assert mime.sealed_content(sealed) == der
    mime.check_carriable(sealed, max_hops=50)


@given(messages)
def test_header_and_body_together_are_the_message(message: bytes) -> None:
    header, body = mime.split(message)
    assert message in (header + body, header + b"\r\n" + body)


@given(messages)
def test_a_message_without_hidden_fields_stays_the_same_octets(message: bytes) -> None:
    without = mime.without_hidden_fields(message)
    names = [name for name, _ in mime.fields(mime.split(message)[0])]
    if not any(name in mime.NEVER_CARRIED for name in names):
        assert without == message
    assert not any(name in mime.NEVER_CARRIED for name, _ in mime.fields(mime.split(without)[0]))


def test_bcc_never_goes_out_folded_or_not() -> None:
    message = b"From: a@a\r\nBCC: x@x,\r\n y@y\r\nSubject: s\r\nbcc : z@z\r\n\r\nBcc: in the body stays\r\n"
    assert mime.without_hidden_fields(message) == b"From: a@a\r\nSubject: s\r\n\r\nBcc: in the body stays\r\n"


@given(
    st.lists(
        st.sampled_from(
            [
                b"Bcc:",
                b"bcC \t: x",
                b"B\0cc: y",
                b" Bcc: z",
                b"X-Bcc: x",
                b"Bcc",
                b": x",
                b"",
                b"\t",
                b"Resent-BCC:",
                b"a: b",
            ]
        ),
        max_size=12,
    ),
    st.sampled_from([b"\r\n", b"\n", b"\r"]),
)
def test_exactly_the_hidden_fields_are_left_out_whatever_ends_the_lines(parts: list[bytes], line_end: bytes) -> None:
    message = line_end.join([*parts, b""])
    header = mime.searched_header(message)
    kept = [raw for name, raw in mime.fields(header) if name not in mime.NEVER_CARRIED]
    without = mime.without_hidden_fields(message)
    assert [raw for _, raw in mime.fields(mime.searched_header(without))] == kept
    assert without.endswith(message[len(header) :])


JUNK = {
    "a line of text": b"Dear Ben,\r\n",
    "a name with a blank in it": b"Dear Ben: hello\r\n",
    "a name that is not ASCII": b"Gr\xc3\xbc\xc3\x9fe: x\r\n",
    "a name with a control character": b"X\x01Y: z\r\n",
    "no name": b": x\r\n",
    "a mailbox's line, not the first": b"From ann@alice.example Wed Nov 25 10:00:00 2026\r\n",
    "an empty line that ends in LF": b"\n",
    "an empty line that ends in CR": b"\r",
}
HEAD = b"From: ann@alice.example\r\nSubject: x,\r\n y\r\n"
BEHIND = b"To: the figures are 42\r\nX-Q: 1\r\n"


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_a_line_that_is_no_field_ends_the_header_and_is_the_first_of_the_body(junk: bytes) -> None:
    """As Postfix reads it, and Python's email, whose authors share no code with us."""
    for rest in (b"", b"\r\nthe body\r\n"):
        message = HEAD + junk + BEHIND + rest
        assert mime.split(message) == (HEAD, junk + BEHIND + rest)
        assert mime.header_of(message) == HEAD
        sealed = mime.sealed_message(message, b"der")
        assert b"figures" not in sealed
        assert sealed.startswith(b"From: ann@alice.example\r\nSubject: [...]\r\n")
    if junk.strip() and not junk.startswith((b":", b"From ")):  # to email, these are no fields, and end no header
        assert email.message_from_bytes(HEAD + junk + BEHIND).keys() == ["From", "Subject"]


@pytest.mark.parametrize("first", [b"Dear Ben,\r\n", b" blank: x\r\n", b"\xff: x\r\n", b"\r\n"])
def test_a_message_that_begins_with_no_field_shows_nothing(first: bytes) -> None:
    message = first + BEHIND + b"\r\n"
    assert mime.header_of(message) == b""
    assert mime.sealed_message(message, b"der").startswith(b"Subject: [...]\r\n")


def test_the_first_line_of_a_mailbox_file_is_passed_over() -> None:
    line = b">From ann@alice.example Wed Nov 25 10:00:00 2026\r\n"
    assert mime.split(line + HEAD + b"\r\nbody\r\n") == (line + HEAD, b"body\r\n")
    assert [name for name, _ in mime.fields(line + HEAD)] == [b"from", b"subject"]


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_what_may_not_be_carried_goes_also_where_some_readers_still_see_a_header(junk: bytes) -> None:
    """Dovecot reads on behind such a line, up to the empty one."""
    mark = b"X-QuMail-Protection: otp; peer=bob\r\n"
    message = HEAD + junk + b"Bcc: hidden@bob.example\r\n" + mark + BEHIND + b"\r\nBcc: stays\r\n" + mark
    without = HEAD + junk + mark + BEHIND + b"\r\nBcc: stays\r\n" + mark
    assert mime.without_hidden_fields(message) == without
    assert mime.marked(without, "aes", "alice", "peer").count(mark) == 1
    assert mime.marked(without, "aes", "alice", "peer").endswith(HEAD + junk + BEHIND + b"\r\nBcc: stays\r\n" + mark)
    forged = b"Authentication-Results: mx.bob.example; dkim=pass\r\n"
    assert without_forged(HEAD + junk + forged + b"\r\n", "mx.bob.example") == HEAD + junk + b"\r\n"


@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("footer", [b"", b"=", b"-- \r\nfooter\r\n", b"\0"])
def test_a_name_is_found_in_what_is_readable_of_a_body_wherever_it_ends(before: int, footer: bytes) -> None:
    name = b"a name of 17 octs"
    for body in (name, base64.encodebytes(bytes(before) + name).replace(b"\n", b"\r\n").rstrip(b"=\r\n")):
        assert mime.has_in_body(b"From: a@a\r\n\r\n" + body + footer, [b"another", name])
        assert not mime.has_in_body(b"From: a@a\r\n\r\n" + body + footer, [b"another"])


@pytest.mark.parametrize("octets", [1, 2, 3, 7])
def test_a_name_is_found_across_the_pieces_of_a_body(octets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mime, "PIECE_OCTETS", octets)
    for before in range(6):
        content = b"x" * before + b"a name" + b"y" * (before % 2 * 90)
        for body in (content, base64.encodebytes(content).rstrip(b"=\n"), b"!" + content):
            assert mime.has_in_body(b"From: a@a\r\n\r\n" + body, [b"another", b"a name"])
            assert not mime.has_in_body(b"From: a@a\r\n\r\n" + body, [b"a nome"])
    assert not mime.has_in_body(b"From: a@a\r\n\r\n!" + base64.b64encode(b"a name"), [b"a name"])


def test_only_the_fewest_fields_are_visible_outside() -> None:
    original = (
        b"Received: from x by y; now\r\nFrom: a@a\r\nTo: b@b,\r\n\tc@c\r\nSubject: takeover\r\nX-Project: Zeus\r\n"
        b"In-Reply-To: <old@a>\r\nReply-To: r@a\r\nAuto-Submitted: auto-replied\r\nContent-Type: text/plain\r\n\r\nx\r\n"
    )
    header, _ = mime.split(mime.sealed_message(original, b"der"))
    assert [name for name, _ in mime.fields(header)] == [
        b"received", b"from", b"to", b"auto-submitted", b"subject", b"mime-version", b"content-type",
        b"content-transfer-encoding", b"content-disposition",
    ]  # fmt: skip
    assert b"Subject: [...]\r\n" in header
    assert b"To: b@b,\r\n\tc@c\r\n" in header


@pytest.mark.parametrize(
    "message", [b"a: b\n\nx\r\n", b"a: b\r\n\r\nx\n.\r\n", b"a: b\r\n\r\nx\ry\r\n", b"a: b\r\n\r\nx\r", b"\n"]
)
def test_bare_cr_and_lf_are_refused(message: bytes) -> None:
    with pytest.raises(MalformedMessage):
        mime.check_carriable(message, max_hops=50)


@pytest.mark.parametrize(
    "message", [b"a: b\0\r\n\r\nx\r\n", b"a\0: b\r\n\r\n", b"\0", b"a: b\r\n \0\r\n", b"a: b\r\n\0"]
)
def test_a_nul_is_refused_in_the_header(message: bytes) -> None:
    with pytest.raises(MalformedMessage, match="a NUL in the header"):
        mime.check_carriable(message, max_hops=50)


def test_a_nul_is_carried_in_the_body() -> None:
    mime.check_carriable(b"a: b\r\n\r\n\0\r\n", max_hops=50)
    mime.check_carriable(b"\r\n\0", max_hops=50)


def test_a_loop_is_ended_by_counting_received_fields() -> None:
    message = b"Received: by x; now\r\n" * 51 + b"\r\nReceived: in the body\r\n"
    mime.check_carriable(message, max_hops=51)
    with pytest.raises(MalformedMessage, match="loop"):
        mime.check_carriable(message, max_hops=50)


def test_an_endless_header_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="longer"):
        mime.split(b"X: y\r\n" * 500_000)


@pytest.mark.parametrize(
    "content_type",
    [
        b"application/pkcs7-mime; smime-type=authEnveloped-data",
        b'APPLICATION/PKCS7-MIME;\r\n smime-type="authenveloped-DATA"; name=x',
        b"application/x-pkcs7-mime; smime-type=authenticated-enveloped-data",
    ],
)
def test_sealed_messages_are_recognised_as_others_write_them(content_type: bytes) -> None:
    assert mime.is_sealed(b"Content-Type: " + content_type + b"\r\n\r\n")


@pytest.mark.parametrize(
    "content_type",
    [
        b"application/pkcs7-mime; \xffsmime-type=authenveloped-data",
        b"application/pkcs7-mime; smime-type=authenveloped-data; \xc3\xa9=1",
        b"text/plain",
        b"application/pkcs7-mime; smime-type=enveloped-data",
        b"application/pkcs7-mime; name*=utf-8''x; smime-type=authEnveloped-data",
        b"application/pkcs7-mime; smime-type*=us-ascii''authEnveloped-data",
        b"application/pkcs7-mime; smime-type=authEnveloped-data; smime-type=authEnveloped-data",
        b"application/pkcs7-mime",
        b"",
        b";;;=\x00\xff",
    ],
)
def test_other_messages_are_not_taken_for_sealed(content_type: bytes) -> None:
    assert not mime.is_sealed(b"Content-Type: " + content_type + b"\r\n\r\n")
    assert not mime.is_sealed(mails.random_attachment(100))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ((b"AQID", b"AQID\r\n-- \r\nfooter of a list"), "base64"),
        ((b"AQID", b"AQ*ID"), "base64"),
        ((b"AQID", b"AQI"), "base64"),
        ((b": base64", b": quoted-printable"), "transfer encoding"),
        ((b"MIME-Version: 1.0\r\n", b"Content-Transfer-Encoding: 7bit\r\n"), "twice"),
    ],
)
def test_a_damaged_sealed_body_is_named(change: tuple[bytes, bytes], cause: str) -> None:
    sealed = mime.sealed_message(b"\r\n", b"\x01\x02\x03")
    assert change[0] in sealed
    with pytest.raises(BadStructure, match=cause):
        mime.sealed_content(sealed.replace(*change))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"hello",
        b"Content-Type: text/plain\r\n\r\nx",
        b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\nx",
    ],
)
def test_a_payload_that_is_no_message_is_refused(payload: bytes) -> None:
    with pytest.raises(BadStructure):
        mime.unwrap(payload)


@pytest.mark.parametrize("parameters", [b'; x="' + b";a" * 2000, b";a" * 15])
def test_content_types_made_to_be_slow_do_not_stop_all_other_mail(parameters: bytes) -> None:
    field = b"Content-Type: application/pkcs7-mime" + parameters + b"\r\n"
    header = field * min(mime.MAX_HEADER_LINES - 1, mime.MAX_HEADER_OCTETS // len(field))
    assert not mime.is_sealed(header + b"\r\n")
    assert seconds(lambda: mime.is_sealed(header + b"\r\n")) < 0.1


@pytest.mark.parametrize("quoted", [b";" * 8000, b'\\"' * 4000, b";a=" * 2600, b"%41" * 2600])
def test_a_content_type_made_to_be_slow_is_refused_at_once(quoted: bytes) -> None:
    """Anybody can seal such a payload with our public certificate."""
    field = b'Content-Type: application/pkcs7-mime; a="' + quoted + b'"\r\n'

    def refused() -> None:
        with pytest.raises(BadStructure):
            mime.unwrap(field + b"X: " + b"x" * 6000 + b"\r\n\r\nx")

    assert seconds(refused) < 0.01


def test_a_long_header_is_work_for_a_thread_and_a_body_of_the_same_size_is_not() -> None:
    """48 KB of short fields would hold the event loop for some ten milliseconds."""
    header = b"a: b\r\n" * 8000
    assert mime.work(header + b"\r\n") > SMALL_OCTETS
    assert mime.header_work(header + b"\r\n") > SMALL_OCTETS
    assert mime.work(mails.plain() + bytes(len(header))) <= SMALL_OCTETS


@given(st.binary(max_size=2000))
def test_no_header_however_odd_breaks_the_reader(garbage: bytes) -> None:
    for read in (mime.is_sealed, mime.without_hidden_fields, mime.split):
        read(garbage)
    with contextlib.suppress(BadStructure):
        mime.sealed_content(garbage)
