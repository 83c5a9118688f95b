"""Which sender addresses a user may use: in MAIL FROM, and in the From field that readers see.
Standard: RFC 5321 2.4 (domains in any case, local parts exactly), RFC 6409 6.1, RFC 5322 3.6.2.
"""

from __future__ import annotations

import pytest

from relay.entry.smtp.auth import FileBackEnd
from relay.entry.smtp.senders import FromNotAllowed, SenderNotAllowed, own_name, parse_rights
from relay.errors import MalformedMessage
from tests.integration.entry.submission.conftest import Server, Start
from tests.testlib.sink import Sink

ALLOWED = "250 2.1.0 Ok"
NOT_ALLOWED = "553 5.7.1 You may not send from this address"
FROM_NOT_ALLOWED = "550 5.7.1 You may not write this address in From, Sender or a Resent field"


@pytest.mark.parametrize(
    ("user", "sender", "reply"),
    [
        ("ann", "ann@alice.example", ALLOWED),
        ("ann", "ann@ALICE.Example", ALLOWED),
        ("ann", '"ann"@alice.example', ALLOWED),
        ("ann", "Ann.Archer@alice.example", ALLOWED),
        ("ann", "Ann@alice.example", NOT_ALLOWED),
        ("ann", "ann.archer@alice.example", NOT_ALLOWED),
        ("ann", "ann+tag@alice.example", NOT_ALLOWED),
        ("ann", "boss@alice.example", NOT_ALLOWED),
        ("ann", "ann@board.alice.example", NOT_ALLOWED),
        ("ann", "ann@alice.example.org", NOT_ALLOWED),
        ("ann", "ann@[127.0.0.1]", NOT_ALLOWED),
        ("ann", "postmaster", NOT_ALLOWED),
        ("ann", "", NOT_ALLOWED),
        ("board@alice.example", "anybody@Board.alice.example", ALLOWED),
        ("board@alice.example", "anybody@alice.example", NOT_ALLOWED),
        ("board@alice.example", "", ALLOWED),
        ("printer", "anybody@example.org", ALLOWED),
        ("printer", "", NOT_ALLOWED),
        ("guest", "guest@alice.example", NOT_ALLOWED),
    ],
)
async def test_a_user_sends_only_from_their_addresses(server: Server, user: str, sender: str, reply: str) -> None:
    async with server.user(user) as program:
        assert await program.ask(f"MAIL FROM:<{sender}>") == reply


async def test_the_auth_parameter_changes_nothing(server: Server) -> None:
    async with server.user() as program:
        assert await program.ask("MAIL FROM:<ann@alice.example> AUTH=<>") == ALLOWED
        await program.ask("RSET")
        assert await program.ask("MAIL FROM:<boss@alice.example> AUTH=boss@alice.example") == NOT_ALLOWED


@pytest.mark.parametrize(
    ("header", "reply"),
    [
        ("From: ann@alice.example", "250 2.0.0 Ok"),
        ("From: Ann Archer <Ann.Archer@ALICE.example>", "250 2.0.0 Ok"),
        ("from : =?utf-8?q?Ann_=C3=84?= <ann@alice.example>", "250 2.0.0 Ok"),
        ("From: Boss <boss@alice.example>", FROM_NOT_ALLOWED),
        ("From: ann@alice.example, boss@alice.example", FROM_NOT_ALLOWED),
        ("From: ann@alice.example\r\nSender: Ann <Ann.Archer@alice.example>", "250 2.0.0 Ok"),
        ("From: ann@alice.example\r\nSender: boss@alice.example", FROM_NOT_ALLOWED),
        ("Sender : boss@alice.example\r\nFrom: ann@alice.example\r\nSender: ann@alice.example", FROM_NOT_ALLOWED),
        ("Sender: \r\nFrom: ann@alice.example", FROM_NOT_ALLOWED),
        (
            "From: ann@alice.example\r\nResent-From: ann@alice.example\r\nResent-Sender: ann@alice.example",
            "250 2.0.0 Ok",
        ),
        ("From: ann@alice.example\r\nresent-from: ann@alice.example, boss@alice.example", FROM_NOT_ALLOWED),
        ("From: ann@alice.example\r\nResent-Sender: boss@alice.example", FROM_NOT_ALLOWED),
        ("From: ann@alice.example\r\nReply-To: boss@alice.example", "250 2.0.0 Ok"),
        ("From: ann@alice.example\r\nFrom: boss@alice.example", "554 5.6.0 Malformed message: the header has 2 From"),
        ("X-From: ann@alice.example", "554 5.6.0 Malformed message: the header has no From"),
    ],
)
async def test_the_fields_that_say_whom_it_is_from_must_name_the_user(
    server: Server, sink: Sink, header: str, reply: str
) -> None:
    message = f"{header}\r\nTo: ben@bob.example\r\nSubject: x\r\n\r\nHello\r\n".encode()
    async with server.user() as program:
        assert (await program.mail(message)).startswith(reply)
        assert await program.ask("NOOP") == "250 2.0.0 Ok"
    assert len(sink.got) == (1 if reply.startswith("250") else 0)


@pytest.mark.promise("Submission's additions change no other field")
@pytest.mark.parametrize(
    "line",
    [
        b"\x0bFrom: boss@alice.example", b"\x0cFrom: boss@alice.example", b"\x1fFrom: boss@alice.example",
        b"\xc2\xa0From: boss@alice.example", b"\xef\xbb\xbfFrom: boss@alice.example", b"\xe2\x80\x8bFrom: boss@alice.example",
        b"From\x0b: boss@alice.example", b"Fr\x08om: boss@alice.example", b"From boss@alice.example",
        b"Hello",
    ],
)  # fmt: skip
@pytest.mark.parametrize("first", [True, False])
async def test_a_line_in_the_header_that_is_no_field_is_refused(
    server: Server, sink: Sink, line: bytes, first: bool
) -> None:
    """Programs differ in what they make of it: some skip its first octets, for some the body begins there."""
    ours = b"From: ann@alice.example"
    lines = [line, ours] if first else [ours, line]
    async with server.user() as program:
        reply = await program.mail(b"\r\n".join([*lines, b"Subject: x", b"", b"Hello"]) + b"\r\n")
        assert reply.startswith("554 5.6.0 Malformed message: a line of the header is no field")
        assert await program.ask("NOOP") == "250 2.0.0 Ok"
    assert sink.got == []


async def test_the_from_field_is_free_where_the_site_wants_it(start: Start, sink: Sink) -> None:
    async with start("check_from = false") as server, server.user() as program:
        assert (await program.mail(b"From: boss@alice.example\r\n\r\nHello\r\n")).startswith("250")
    assert len(sink.got) == 1


async def test_a_user_who_may_send_as_anybody_may_write_any_from(server: Server, sink: Sink) -> None:
    async with server.user("printer") as program:
        assert (await program.mail(b"From: Scanner at the listener\r\n\r\nHello\r\n", "scan@example.org")).startswith(
            "250"
        )
    assert len(sink.got) == 1


@pytest.mark.parametrize(
    "field",
    [
        "ann@alice.example <boss@alice.example>",
        "<ann@alice.example> <boss@alice.example>",
        "Ann <ann@alice.example> boss@alice.example",
        '"ann@alice.example" <boss@alice.example>',
        "ann@alice.example,\r\n boss@alice.example",
        "Boss, Ann <ann@alice.example>",
        "team: ann@alice.example, boss@alice.example;",
        "undisclosed-recipients:;",
        "<@alice.example:boss@alice.example>",
        "=?utf-8?q?ann=40alice=2Eexample?=",
        "ann@alice.example(",
        "",
        "(" * 2000,
        '"' * 2000,
        "ann@alice.example," * 100 + "boss@alice.example",
        "ann@alice.example," * 1000,
        "ann@alice.example\0",
        "=?utf-<?q?@evil.example:ceo?= <ann@alice.example>",
        "=?utf-8?q?<ceo@alice.example>?= <ann@alice.example>",
        "=?utf-8?q?a,ceo@alice.example,?= <ann@alice.example>",
        "=?utf-8?x?a?= <ann@alice.example>",
        "=?utf-8?q?a?=?utf-8<?q?b?= <ann@alice.example>",
        "=?utf-8?q?ann?=@alice.example",
        "=? <ann@alice.example>",
    ],
)
def test_a_from_field_that_can_be_read_in_two_ways_is_refused(field: str) -> None:
    message = f"From: {field}\r\n\r\n".encode()
    with pytest.raises(FromNotAllowed):
        parse_rights(["ann@alice.example"]).check_from(message)


@pytest.mark.parametrize(
    "field",
    [
        "John Q. Public <ann@alice.example>",
        "Ann (from home) <ann@alice.example>",
        "Grüße aus Köln <ann@alice.example>",
        "\r\n Ann\r\n <ann@alice.example>",
        "<ann@alice.example>",
        "=?utf-8?q?Dr._J=C3=B6rg?= Archer <ann@alice.example>",
        "=?iso-8859-1*de?Q?J=F6rg?=\r\n =?UTF-8?B?SsO2cg==?= <ann@alice.example>",
        "ann@alice.example (=?utf-8?q?zu_Hause?=)",
    ],
)
def test_the_from_fields_that_people_have_are_understood(field: str) -> None:
    rights = parse_rights(["ann@alice.example"])
    rights.check_from(f"Subject: x\r\nFrom: {field}\r\n\r\n".encode())
    with pytest.raises(FromNotAllowed):
        rights.check_from(f"Subject: x\r\nFrom: {field.replace('ann@', 'boss@')}\r\n\r\n".encode())


def test_a_domain_counts_in_both_its_spellings() -> None:
    rights = parse_rights(["ann@bücher.example"])
    rights.check_sender("ann@xn--bcher-kva.example")
    rights.check_sender("ann@BÜCHER.example")
    with pytest.raises(SenderNotAllowed):
        rights.check_sender("ann@bucher.example")


def test_whose_name_is_all_that_is_known_may_use_it() -> None:
    own_name("ann@alice.example", ["alice.example"]).check_sender("ann@alice.example")
    own_name("ann", ["alice.example", "b.example"]).check_sender("ann@b.example")
    for name in ("ann", "*", "@alice.example", "a b", "<>", "ann@other.example"):
        with pytest.raises(SenderNotAllowed):
            own_name(name, ["alice.example"]).check_sender("boss@alice.example")


def test_a_header_without_end_is_refused() -> None:
    with pytest.raises(MalformedMessage):
        parse_rights(["ann@alice.example"]).check_from(b"From: ann@alice.example\r\n" + b"X: y\r\n" * 500_000)


@pytest.mark.parametrize(
    "entry", ["ann", "ann@", "a b@alice.example", "ann@alice..example", "<ann@alice.example>", "**"]
)
def test_what_is_no_address_is_no_right(entry: str) -> None:
    with pytest.raises(ValueError, match=r"address|domain"):
        parse_rights([entry])


async def test_a_sender_who_could_not_be_checked_has_begun_no_mail(
    server: Server, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async with server.user("ann") as program:
        with monkeypatch.context() as patch:
            patch.setattr(FileBackEnd, "rights", no_thread)
            assert (await program.ask("MAIL FROM:<boss@alice.example>")).startswith("451 ")
        assert (await program.ask("RCPT TO:<ben@bob.example>")).startswith("503 ")
        assert await program.ask("MAIL FROM:<ann@alice.example>") == ALLOWED
    assert not sink.got
