"""A next hop that speaks LMTP.
Standard: RFC 2033: LHLO, and after the content a reply for each recipient that was accepted.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.errors import NextHopRefused, NextHopUnavailable
from tests.integration.forward.conftest import Build
from tests.integration.forward.mails import BEA, BEN, mail
from tests.testlib.hop import EVERYTHING, HANG_UP, Hop

PIPELINED = [EVERYTHING, tuple(each for each in EVERYTHING if each != "PIPELINING")]


@pytest.mark.parametrize("extensions", PIPELINED)
async def test_each_recipient_has_the_outcome_that_the_server_gave(build: Build, extensions: tuple[str, ...]) -> None:
    async with Hop(extensions, lmtp=True) as hop:
        hop.instead = {"RCPT TO:<bad@": "550 5.1.1 no", f". {BEN}": "452 4.2.2 full", ". big@": "552 5.3.4 big"}
        handed = await build(hop).deliver(mail("bad@b.example", BEN, "big@b.example", BEA))
    bad, full, big, accepted = handed.outcomes
    assert isinstance(bad, NextHopRefused)
    assert isinstance(full, NextHopUnavailable)
    assert full.status == "4.2.2"
    assert isinstance(big, NextHopRefused)
    assert accepted is None
    assert hop.commands[0] == "LHLO relay.example"
    assert [got.recipients for got in hop.got] == [(BEA,)]
    assert handed.next_hop == f"lmtp://{hop.address}"


@pytest.mark.parametrize("said", [HANG_UP, b"nonsense\r\n"])
async def test_who_was_accepted_before_the_connection_broke_is_not_tried_again(build: Build, said: bytes) -> None:
    async with Hop(lmtp=True, instead={f". {BEA}": said}) as hop, Hop(lmtp=True) as other:
        handed = await build(hop, other).deliver(mail(BEN, BEA, "bob@bob.example"))
    assert handed.outcomes[0] is None
    assert all("not known" in str(outcome) for outcome in handed.outcomes[1:])
    assert not other.connections


async def test_a_unix_socket_is_reached(build: Build, tmp_path: Path) -> None:
    async with Hop(lmtp=True, path=tmp_path / "lmtp") as hop:
        handed = await build(hop).deliver(mail())
    assert handed.outcomes == (None,)
    assert handed.next_hop == f"lmtp:{tmp_path / 'lmtp'}"


async def test_a_unix_socket_that_is_not_there_holds_the_mail(build: Build, tmp_path: Path) -> None:
    with pytest.raises(NextHopUnavailable, match="no connection"):
        await build(f"lmtp:{tmp_path / 'nothing'}").deliver(mail())


async def test_a_connection_is_used_again(build: Build) -> None:
    async with Hop(lmtp=True) as hop:
        next_hop = build(hop)
        for _ in range(3):
            assert (await next_hop.deliver(mail(BEN, BEA))).outcomes == (None, None)
    assert len(hop.connections) == 1


async def test_lmtp_and_smtp_may_follow_one_another(build: Build) -> None:
    async with Hop(lmtp=True, instead={"LHLO": "451 4.3.0 later"}) as first, Hop() as second:
        assert (await build(first, second).deliver(mail())).next_hop == str(second.address)
