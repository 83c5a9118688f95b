"""Floors by sender, author and login, through real Postfix with the milter, with the LMTP filter, and at the SMTP port.
Standard: policies/README.md; what somebody writes to slip past a floor is held or refused, and never leaves in clear.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.kme import DevelopmentKMEs
from tests.integration.entry.milter.test_alone import alone
from tests.integration.postfix.test_postfix import IN_CLEAR
from tests.testlib import mails
from tests.testlib.mail_site import mail_site
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import requires_postfix
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site, serving
from tests.testlib.submit import submit
from tests.testlib.wire import Wire

BOARD = """
[[floor]]
sender = "*@board.alice.example"
levels = ["otp"]
"""
DODGES = [
    "ceo@board.alice.example.",
    "CEO@BOARD.alice.example",
    "ceo+x@board.alice.example",
    "ceo+@board.alice.example",
    '"ceo"@board.alice.example',
    "SRS0=abcd=TT=board.alice.example=ceo@alice.example",
    "prvs=1234abcdef=ceo@board.alice.example",
    "ceo%board.alice.example@alice.example",
]


def from_ceo() -> bytes:
    return (
        mails.plain()
        .replace(b"From: ", b"X-From: ")
        .replace(b"Subject:", b"From: ceo@board.alice.example\r\nSubject:", 1)
    )


@pytest.mark.promise("Nobody slips past a floor by a sender, a From or a login that cannot be read")
@requires_postfix
async def test_no_spelling_of_a_sender_slips_past_a_floor_at_the_milter(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    # Postfix tells the milter that this client has not authenticated.
    other = '\n[[floor]]\nsender = "login:ceo"\nlevels = ["otp"]\n'
    async with alone(tmp_path, kmes, sink, files={"floors.toml": BOARD + other}) as (alice, _):
        for sender in DODGES:
            reply = await alice.submit(mails.plain(), "press@clear.example", sender=sender)
            assert reply.startswith("550 5.7.1"), (sender, reply)
        assert (await alice.submit(from_ceo(), "press@clear.example")).startswith("550")
        assert (await alice.submit(mails.plain(), "press@clear.example")).startswith("250")
        await sink.messages(1)
        await alice.organisation.postfix.empty()
    assert [each.sender for each in sink.got] == ["ann@alice.example"]


@pytest.mark.promise("Nobody slips past a floor by a sender, a From or a login that cannot be read")
@requires_postfix
async def test_no_spelling_of_a_sender_slips_past_a_floor_behind_the_content_filter(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    (smtp,) = free_addresses(1)
    async with Wire(smtp) as inbound, Wire(sink.address) as to_bob:
        site = mail_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], smtp=smtp, inbound=inbound,
            peer_inbound=to_bob, policies={"default.toml": IN_CLEAR, "floors.toml": BOARD}, over="lmtp",
        )  # fmt: skip
        async with site as alice:
            for sender in DODGES[:-1]:  # a bounce to the last one may be a route, and would wait
                reply = await alice.postfix.submit(mails.plain(), sender=sender, recipients=["press@clear.example"])
                assert reply.code == 250, reply
            assert (await alice.postfix.submit(from_ceo(), recipients=["press@clear.example"])).code == 250
            assert (await alice.postfix.submit(mails.plain(), recipients=["last@clear.example"])).code == 250
            await alice.delivered("last@clear.example")
            await alice.postfix.empty()
            assert not alice.all_delivered("press@clear.example")


@pytest.mark.parametrize(
    "sender", ["ceo@board.alice\u200b.example", "ceo@board\u3002alice.example", "c\u00adeo@board.alice.example"]
)
async def test_a_sender_with_invisible_characters_slips_past_no_floor(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, sender: str
) -> None:
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        policies={"default.toml": IN_CLEAR, "floors.toml": BOARD},
    )  # fmt: skip
    async with serving(site) as addresses:
        reply = await submit(
            addresses["outgoing"], mails.plain(), sender=sender, recipients=["x@clear.example"], options=["SMTPUTF8"]
        )
    assert reply.code >= 500
    assert not sink.got
