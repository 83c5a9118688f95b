"""The parts of a message that keeps to the standard are found; what is not followed to its end is in doubt.
Standard: RFC 2045, RFC 2046; structures that programs are known to read differently.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, strategies as st

from relay.formats.doubt import InDoubt
from relay.policy import structure
from relay.policy.content import MessageFacts
from relay.policy.structure import MAX_DEPTH, MAX_PART_HEADER_OCTETS, MAX_PARTS, find_names

FILE = b"Content-Type: a/b\r\nContent-Disposition: attachment; filename=a.doc\r\n\r\nx\r\n"
DEEP = b"".join(b"Content-Type: multipart/mixed; boundary=%02d\r\n\r\n--%02d\r\n" % (n, n) for n in range(MAX_DEPTH))


def mixed(parameters: bytes, body: bytes = b"--b\r\n" + FILE + b"--b--\r\n") -> bytes:
    return b"Content-Type: multipart/mixed" + parameters + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    "message",
    [
        FILE,
        mixed(b"; boundary=b"),
        mixed(b'; boundary="b"'),
        mixed(b"; boundary*=utf-8'en'%62"),
        mixed(b"; boundary*1=c; boundary*0=b", b"--bc\r\n" + FILE + b"--bc--\r\n"),
        mixed(b"; boundary=b", b"--b\r\n" + FILE),
        mixed(b"; boundary=b", b"--b\r\n" + FILE[:-2]),
        mixed(b"; boundary=b", b"--b \t\r\n" + FILE + b"--b--"),
        mixed(b"; boundary=b", b"preamble\r\n--b\r\n" + FILE + b"--b--\r\nepilogue"),
        mixed(b"; boundary=b").replace(b"multipart/mixed", b"multipart/x-unknown"),
        b"X: y\r\n" + mixed(b";\r\n boundary=b"),
        mixed(b"; boundary=a", b"--a\r\n" + mixed(b"; boundary=b") + b"--a--"),
        *(
            b"Content-Type: message/" + kind + b"\r\n\r\n" + FILE
            for kind in (b"rfc822", b"global", b"news", b"x-other")
        ),
        b"Content-Type: multipart/digest; boundary=b\r\n\r\n--b\r\n\r\n" + FILE + b"--b--\r\n",
        b"Content-Type: text/html; name=a.doc\r\n\r\nx",
        b"Content-Type: text/html; filename=a.doc\r\n\r\nx",
        b"Content-Disposition: inline; name=a.doc\r\n\r\nx",
        b"Content-Type: message/rfc822; name=a.doc\r\n\r\nX: y\r\n\r\nx",
        DEEP + FILE + b"".join(b"--%02d--\r\n" % n for n in reversed(range(MAX_DEPTH))),
    ],
)
def test_a_file_in_a_message_that_keeps_to_the_standard_is_found(message: bytes) -> None:
    assert b"a.doc" in find_names(message)


@pytest.mark.parametrize(
    "message",
    [
        mixed(b""),
        mixed(b'; boundary=""'),
        mixed(b"; boundary=x"),
        mixed(b'; boundary="b "'),
        mixed(b"; boundary=a; boundary=b"),
        mixed(b"; boundary=b (comment)"),
        mixed(b'; boundary="' + b"b" * 9000 + b'"'),
        mixed(b"; boundary=b\r\nContent-Transfer-Encoding: base64"),
        mixed(b"; boundary=b\r\nContent-Transfer-Encoding: x-uuencode"),
        mixed(b"; boundary=b\r\nContent-Type: text/plain"),
        mixed(b"; boundary=b\r\nno field"),
        mixed(b"; boundary=b").replace(b"multipart/mixed", b"multipart"),
        mixed(b"; boundary=b").replace(b"multipart/mixed", b"text/plain"),
        mixed(b"; boundary=b").replace(b"\r\n\r\n", b"\r\n \r\n", 1),
        mixed(b"; boundary=b", b"--bc\r\n" + FILE + b"--b--\r\n"),
        mixed(b"; boundary=b", b"--b\r\n\r\ntext\r\n--b--\r\n--b\r\n" + FILE),
        mixed(b"; boundary=b", b"--b\r\nno field\r\n" + FILE + b"--b--\r\n"),
        mixed(b"; boundary=b", b"--b\r\n Content-Type: a/b\r\n\r\nx"),
        mixed(b"; boundary=b", b"--b\r\n" + b"X: y\r\n" * (MAX_PART_HEADER_OCTETS // 6 + 1) + b"\r\nx"),
        mixed(b"; boundary=b", b"--b\r\n\r\nx\r\n" * (MAX_PARTS + 1)),
        mixed(b"; boundary=a", b"--a\r\n" + mixed(b"; boundary=b", b"--b\r\n\r\nx\r\n") + b"--a--\r\n"),
        mixed(b"; boundary=a", b"--a\r\n" + mixed(b"; boundary=ab", b"--ab\r\n" + FILE + b"--ab--\r\n--a--")),
        b"Content-Type: message/partial; id=x\r\n\r\nx",
        b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\nx",
        b"Content-Name: a.doc\r\n\r\nx",
        b"X-Sun-Data-Name: a.doc\r\n\r\nx",
        mixed(b"; boundary=b", b"--b\r\nContent-Type: message/rfc822\r\n\r\nno field\r\n\r\n--b--"),
        DEEP + mixed(b"; boundary=b"),
    ],
)
def test_what_is_not_followed_to_its_end_is_in_doubt(message: bytes) -> None:
    with pytest.raises(InDoubt):
        find_names(message)


def test_a_usual_message_has_its_files_and_no_others() -> None:
    """A rule must not take a mail for more than it is."""
    text = b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nx\r\n"
    page = b"Content-Type: text/html; charset=utf-8\r\n\r\nx\r\n"
    alternative = (
        b'Content-Type: multipart/alternative;\r\n boundary="=_b_1"\r\n\r\n--=_b_1\r\n' + text + b"--=_b_1\r\n" + page
    )
    body = b"--=_a\r\n" + alternative + b"--=_b_1--\r\n\r\n--=_a\r\n" + FILE + b"--=_a--\r\n"
    assert find_names(mixed(b';\r\n boundary="=_a"', body)) == [b"a.doc"]


def test_many_forwarded_messages_are_followed() -> None:
    files = [FILE.replace(b"a.doc", b"a%d.doc" % n) for n in range(60)]
    forwarded = [mixed(b"; boundary=b%02d" % n, b"--b%02d\r\n%b--b%02d--\r\n" % (n, files[n], n)) for n in range(60)]
    body = b"".join(b"--b\r\nContent-Type: message/rfc822\r\n\r\n" + each for each in forwarded) + b"--b--\r\n"
    body = body.replace(b"--b\r\n", b"---b\r\n").replace(b"--b--\r\n", b"---b--\r\n")
    assert find_names(mixed(b"; boundary=-b", body)) == [b"a%d.doc" % n for n in range(60)]


@given(
    st.lists(
        st.sampled_from(
            [b"--a\r\n", b"--b\r\n", b"--b--\r\n", b"\r\n", FILE, b"x", b" ", mixed(b"; boundary=b"), DEEP[:60]]
        )
    )
)
def test_nothing_else_is_raised(lines: list[bytes]) -> None:
    with suppress(InDoubt):
        find_names(mixed(b"; boundary=a", b"".join(lines)))


def test_one_message_is_read_while_another_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread may read a slow one; what the event loop reads meanwhile must not wait for it."""
    under_way, over = threading.Event(), threading.Event()
    real = structure._Walk.entity

    def slow(self: structure._Walk, start: int, end: int, depth: int, **how: Any) -> None:
        if b"slow" in self._message:
            under_way.set()
            over.wait()
        real(self, start, end, depth, **how)

    monkeypatch.setattr(structure._Walk, "entity", slow)
    facts = MessageFacts(b"X: slow\r\n\r\n"), MessageFacts(FILE)
    threads = [threading.Thread(target=getattr, args=(each, "names")) for each in facts]
    threads[0].start()
    under_way.wait()
    threads[1].start()
    threads[1].join(20)
    waits = threads[1].is_alive()
    over.set()
    for thread in threads:
        thread.join()
    assert not waits
