"""The octet NUL: a body has it at the far end as it was sent, a header with it is refused at every listener.
Standard: RFC 5322 4.1 (obsolete everywhere) and RFC 2045 2.8 (8-bit data has none): mail servers cut lines at it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relay.formats import mime
from relay.kme import DevelopmentKMEs
from relay.mail import Envelope, Mail, Recipient
from relay.process import assembly
from tests.conftest import Pair
from tests.testlib import mails
from tests.testlib.house import house
from tests.testlib.postfix import requires_postfix
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site, serving
from tests.testlib.submit import submit, submit_lmtp

BODY = mails.plain(body="A body with \0 and\r\n\0\r\n\0\0\r\n")
HEADER = mails.plain().replace(b"Subject: Q", b"Subject: Q\0")
REFUSAL = "554 5.6.0 Malformed message: a NUL in the header"


@pytest.fixture
async def listeners(tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink) -> AsyncIterator[dict[str, Any]]:
    """Where a relay takes mail in both directions, by SMTP and LMTP; what it hands on ends at `wire`."""
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
        incoming=wire.address, settings='lmtp = "127.0.0.1:0"',
    )  # fmt: skip
    async with serving(site) as addresses:
        yield dict(addresses)


@pytest.mark.promise("A NUL in a header is refused at every listener")
@pytest.mark.parametrize("listener", ["outgoing", "incoming", "outgoing_lmtp", "incoming_lmtp"])
async def test_every_listener_refuses_it_in_the_header(listeners: dict[str, Any], wire: Sink, listener: str) -> None:
    for message in (HEADER, b"Subject: x\r\n\0\r\n"):
        if listener.endswith("lmtp"):
            replies = await submit_lmtp(listeners[listener], message)
        else:
            replies = [await submit(listeners[listener], message)]
        assert list(map(str, replies)) == [REFUSAL]
    assert wire.got == []


async def test_in_the_body_it_arrives_and_the_wire_shows_none(pair: Pair, sink: Sink) -> None:
    assert (await submit(pair.outgoing, BODY)).code == 250
    [got] = await sink.messages(1)
    assert got.message.endswith(BODY)
    assert b"X-QuMail-Protection: aes; peer=alice" in got.message


async def test_in_the_body_of_ordinary_mail_it_passes(listeners: dict[str, Any], wire: Sink) -> None:
    assert [(await submit(listeners["incoming"], BODY)).code] == [250]
    assert [str(reply)[:3] for reply in await submit_lmtp(listeners["incoming_lmtp"], BODY)] == ["250"]
    assert [got.message.endswith(BODY) for got in wire.got] == [True, True]


async def test_what_a_peer_has_sealed_with_it_in_the_header_is_not_handed_on(pair: Pair, sink: Sink) -> None:
    async with assembly.parts(pair.alice.config) as built:
        envelope = Envelope("ann@alice.example", (Recipient("ben@bob.example"),))
        sealed = await built.sealer.seal(Mail(envelope, HEADER))
    [form] = sealed.copies
    reply = await submit(pair.incoming, re.sub(rb"Subject: [^\r]*", b"Subject: x", form.message).replace(b"\0", b""))
    assert reply.code == 250  # put aside: what is wrong inside is not told
    assert sink.got == []


@requires_postfix
@pytest.mark.parametrize("way", ["lmtp", "milter"])
async def test_through_postfix_a_body_arrives_whole_and_a_header_is_never_sealed_with_it(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, way: str
) -> None:
    bob = make_site(tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address)
    async with serving(bob) as opening, house(way, tmp_path, kmes) as alice:
        for message in (BODY, HEADER):
            assert (await submit(alice.entry, message)).code == 250  # Postfix itself cuts a field at the NUL
        await alice.settled()
        for got in alice.bob.got:
            assert (await submit(opening["incoming"], got.message)).code == 250
        opened = sorted(got.message.partition(b"\r\n\r\n") for got in sink.got)
    assert not any(b"\0" in header for header, _, _ in opened)
    assert BODY.partition(b"\r\n\r\n")[2] in [body for _, _, body in opened]
    assert all(mime.is_sealed(got.message) for got in alice.bob.got)
