"""A real Postfix as the next hop.
Standard: Postfix's own log and what it delivers are the second opinion on what we have said.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from relay.errors import NextHopRefused
from relay.mail import Origin, Recipient
from tests.integration.forward.conftest import Build
from tests.integration.forward.mails import BEA, BEN, BIG, TEXT, mail
from tests.testlib import postfix
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import Postfix, requires_postfix
from tests.testlib.sink import Sink

pytestmark = requires_postfix


@pytest.fixture
async def bobs(sink: Sink) -> AsyncIterator[Postfix]:
    """Bob's Postfix: it knows Ben and Bea, trusts XFORWARD from here, and delivers to the sink."""
    [smtp] = free_addresses(1)
    settings = {
        "myhostname": "mail.bob.example",
        "relay_domains": "bob.example",
        "relay_recipient_maps": f"inline:{{ {BEN}=x, {BEA}=x }}",
        "default_transport": f"mailboxes:[{sink.address.host}]:{sink.address.port}",
        "relay_transport": f"mailboxes:[{sink.address.host}]:{sink.address.port}",
        "smtpd_authorized_xforward_hosts": "127.0.0.0/8",
        "smtpd_recipient_limit": "3",
        "smtpd_recipient_overshoot_limit": "1000",
    }
    async with postfix.running(smtp=smtp, fragments=(), ports={}, settings=settings) as running:
        yield running


async def test_mails_reach_it_over_one_connection_with_their_origin(build: Build, bobs: Postfix, sink: Sink) -> None:
    next_hop = build(f"smtp://{bobs.smtp}")
    origin = Origin("client.alice.example", "192.0.2.7", "4711", "ESMTP", "client.alice.example", "4XyZ", "REMOTE")
    for sender in ("", "ann@alice.example"):
        handed = await next_hop.deliver(mail(BEN, BEA, sender=sender, origin=origin, ret="HDRS", envid="E1"))
        assert handed.outcomes == (None, None)
        assert "queued as" in handed.answer
    await next_hop.close()
    await bobs.empty()
    assert {got.sender for got in sink.got} == {"", "ann@alice.example"}
    assert bobs.log.count(": connect from ") == 1
    assert bobs.log.count("orig_queue_id=4XyZ, orig_client=client.alice.example[192.0.2.7]") == 2
    assert "lost connection" not in bobs.log


async def test_large_mail_and_an_unknown_recipient_and_dots(build: Build, bobs: Postfix, sink: Sink) -> None:
    next_hop = build(f"smtp://{bobs.smtp}")
    message = b"Subject: x\r\n\r\n.\r\n..\r\n" + BIG[len(TEXT) :][: 5 * 2**20].rpartition(b"\r\n")[0] + b"\r\n"
    unknown, accepted = (await next_hop.deliver(mail("nobody@bob.example", BEN, message=message))).outcomes
    await bobs.empty()
    assert isinstance(unknown, NextHopRefused)
    assert unknown.status == "5.1.1"
    assert accepted is None
    assert sink.got[0].message.endswith(message.partition(b"\r\n\r\n")[2])


async def test_more_recipients_than_it_takes_at_once(build: Build, bobs: Postfix, sink: Sink) -> None:
    recipients = [Recipient(f"{name.partition('@')[0]}@bob.example") for name in (BEN, BEA) * 4]
    handed = await build(f"smtp://{bobs.smtp}").deliver(mail(*recipients))
    assert handed.outcomes == (None,) * 8
    await bobs.empty()
    assert bobs.log.count(": client=") == 3


async def test_many_mails_at_once(build: Build, bobs: Postfix, sink: Sink) -> None:
    next_hop = build(f"smtp://{bobs.smtp}")
    handed = await asyncio.gather(*(next_hop.deliver(mail()) for _ in range(40)))
    assert all(each.outcomes == (None,) for each in handed)
    await sink.messages(40)
    assert len(sink.got) == 40
