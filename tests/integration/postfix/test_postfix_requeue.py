"""A mail that is half delivered when an administrator has Postfix queue its mail anew (`postsuper -r`).
Standard: postsuper(1), which puts a mail back where programs submit theirs, so that it is read in once more.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Literal

import pytest

from relay.kme import DevelopmentKMEs
from relay.mail import begin_before
from tests.testlib import mails
from tests.testlib.house import POLICIES, House, house
from tests.testlib.mail_site import mail_site
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import requires_postfix
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site, serving
from tests.testlib.submit import submit
from tests.testlib.wire import Wire

HELD = 'levels = ["pqc+aes", "pqc"]\notherwise = "hold 1 d"\n'
"""There are no certificates: whom this is for has to wait, which only the whole message tells."""
ANN, BEN = "ann@alice.example", "ben@bob.example"
OWNER = 103
AGAIN = b"Received: by mail.alice.example (Postfix, from userid 103)\r\n\tid 316BAAB4839; Thu, 26 Nov 2026 13:14:16 +0000 (UTC)\r\n"
BEFORE = b"Received: from client.example (unknown [127.0.0.1])\r\n\tby mail.alice.example (Postfix) with ESMTP id CE355AB4805;\r\n\tThu, 26 Nov 2026 13:09:15 +0000 (UTC)\r\n"
REST = b"From: ann@alice.example\r\n\r\nx\r\n"


async def requeued(alice: House) -> None:
    """Everything is in a new queue file, and was tried once more."""
    before = set(await alice.postfix.queued_names())
    await alice.postfix.command("postsuper", "-r", "ALL")
    await alice.sendmail("wake", ANN)  # else Postfix looks there once a minute
    async with asyncio.timeout(20):
        while before & set(await alice.postfix.queued_names()) or not await alice.settled():
            await asyncio.sleep(0.05)


@requires_postfix
async def test_who_has_a_mail_does_not_get_it_again_when_it_is_requeued(tmp_path: Path, kmes: DevelopmentKMEs) -> None:
    """What a program hands in twice are two mails, be they the same to the octet."""
    subjects, expected = ("half", "script", "twice"), {"half": 1, "script": 1, "twice": 2}
    async with house("smtp", tmp_path, kmes, policies=POLICIES | {"bob.example.toml": HELD}) as alice:
        assert (await alice.send("half", ANN, BEN)).code == 250
        await alice.sendmail("script", ANN, BEN)
        for _ in range(2):
            await alice.sendmail("twice", ANN, BEN, header="Received: by a with b id c; then\nDate: then\n")
        async with asyncio.timeout(20):
            while not all(ANN in alice.delivered(each) for each in subjects) or not await alice.settled():
                await asyncio.sleep(0.05)
        for _ in range(2):
            await requeued(alice)
        assert {each: alice.delivered(each) for each in subjects} == {
            each: [ANN] * number for each, number in expected.items()
        }
        alice.site.write_policies(POLICIES)
        async with asyncio.timeout(20):
            while await alice.settled():
                await alice.postfix.flush()
                await asyncio.sleep(0.1)
        assert {each: alice.delivered(each) for each in subjects} == {
            each: [ANN] * number + [BEN] * number for each, number in expected.items()
        }


@pytest.mark.parametrize("times", range(3))
def test_the_fields_of_requeueing_are_no_part_of_a_mail(times: int) -> None:
    message = BEFORE + REST
    begin = begin_before(AGAIN * times + message, OWNER)
    assert (AGAIN * times + message)[begin:] == message


@pytest.mark.parametrize(
    "message",
    [
        AGAIN + REST,
        AGAIN.replace(b"103", b"1000") + BEFORE + REST,
        AGAIN.replace(b"103", b"0103x") + BEFORE + REST,
        AGAIN.replace(b"\r\n\tid", b" id") + BEFORE + REST,
        BEFORE + AGAIN + BEFORE + REST,
        b"X: y\r\n" + AGAIN + BEFORE + REST,
        AGAIN + b"X: y\r\n" + BEFORE + REST,
        AGAIN + b"\tmore\r\n" + BEFORE + REST,
        AGAIN + b"\r\n" + BEFORE + REST,
        AGAIN[:-2] + BEFORE,
        AGAIN,
        b"",
    ],
    ids=range(12),
)
def test_whatever_else_is_on_top_makes_another_mail(message: bytes) -> None:
    assert begin_before(message, OWNER) == 0


def test_where_postfix_has_no_user_no_mail_is_known_again() -> None:
    assert begin_before(AGAIN + BEFORE + REST, None) == 0


@pytest.fixture
async def sealed(tmp_path: Path, kmes: DevelopmentKMEs) -> list[bytes]:
    """Mails that Alice has sealed for Bob."""
    async with Sink() as wire:
        site = make_site(
            tmp_path / "sealing", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address
        )
        async with serving(site) as addresses:
            for number in range(8):
                reply = await submit(addresses["outgoing"], mails.plain(str(number)).replace(b"<1@", b"<%d@" % number))
                assert reply.code == 250
    return [got.message for got in wire.got]


@pytest.mark.promise("Nothing sealed is handed to users unopened")
@requires_postfix
@pytest.mark.parametrize("over", ["lmtp", "smtp"])
async def test_sealed_mail_that_is_requeued_where_it_arrives_is_opened(
    tmp_path: Path, kmes: DevelopmentKMEs, sealed: list[bytes], over: Literal["smtp", "lmtp"]
) -> None:
    """It comes from pickup then, whose content filter is the outgoing relay: users got it unopened, as mail inside."""
    async with AsyncExitStack() as stack:
        [smtp] = free_addresses(1)
        inbound = await stack.enter_async_context(Wire(smtp))
        bob = await stack.enter_async_context(
            mail_site(
                tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], smtp=smtp, inbound=inbound,
                peer_inbound=inbound, policies={"bob.example.toml": POLICIES["alice.example.toml"]}, over=over,
            )
        )  # fmt: skip
        await bob.kill_relay()
        for each in sealed:
            assert (await submit(bob.postfix.smtp, each, recipients=[BEN])).code == 250
        async with asyncio.timeout(20):
            while [each.queue for each in await bob.postfix.queue()] != ["deferred"] * len(sealed):
                await asyncio.sleep(0.1)
        await bob.postfix.command("postsuper", "-r", "ALL")
        await bob.restart_relay()
        async with asyncio.timeout(30):
            while len(bob.all_delivered(BEN)) < len(sealed):
                await bob.postfix.command("postqueue", "-f")
                await asyncio.sleep(0.2)
        assert {b"The figures are 42" in got.message for got in bob.all_delivered(BEN)} == {True}
        assert bob.relay.log.count("came_by_the_way_out") >= len(sealed)
