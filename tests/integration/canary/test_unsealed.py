"""Unsealed mail in a peer's name is noticed where it comes in, and the peer's relay is told.
Standard: deploy/WATCHING.md; a mail server that has lost its filter is seen by the other side alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from relay.canary import telling
from relay.canary.message import CanaryNote, write
from relay.formats import mime
from tests.integration.canary.conftest import ALICE, BOB, Making, Scene
from tests.system.drill import shortened
from tests.testlib import mails
from tests.testlib.submit import submit

ANN, BEN, LIST = "ann@alice.example", "ben@bob.example", "list@lists.example"
"""Ann's mail has left Alice's mail server past her relay."""


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(telling, "LOOK_S", 0.05)
    with shortened():
        yield


async def into_bobs(scene: Scene, sender: str, author: str = ANN) -> None:
    message = mails.plain().replace(b"From: ", b"X-From: ", 1)
    reply = await submit(
        scene.addresses[1]["incoming"], b"From: <%b>\r\n" % author.encode() + message, sender=sender, recipients=[BEN]
    )
    assert reply.code == 250


async def test_unsealed_mail_with_a_peers_sender_is_told_on_both_sides(making: Making) -> None:
    async with making.both(alice="") as scene:
        await into_bobs(scene, ANN)
        await scene.until(scene.bob, "qumail_unsealed_from_peer_total", peer="alice", by="sender")
        await scene.until(scene.bob, "qumail_alarm", alarm="unsealed_from_peer")
        await scene.until(scene.alice, "qumail_unsealed_at_peer_total", peer="bob")
        await scene.until(scene.alice, "qumail_alarm", alarm="unsealed_at_peer")
        [note] = scene.receipts
        assert (note.sender, note.recipients) == (BOB, (ALICE,))
        assert mime.is_sealed(note.message)
        assert b"unsealed" not in note.message
        assert len(scene.inboxes[1].got) == 1, "the mail itself is delivered"
        assert scene.inboxes[0].got == []


async def test_the_peer_is_told_once_an_hour_however_much_comes(making: Making) -> None:
    async with making.both(alice="") as scene:
        await into_bobs(scene, ANN)
        await scene.until(scene.alice, "qumail_unsealed_at_peer_total", peer="bob")
        for _ in range(3):
            await into_bobs(scene, ANN)
        await scene.until(scene.bob, "qumail_unsealed_from_peer_total", 4, peer="alice")
        await scene.until(scene.bob, "qumail_alarm", alarm="unsealed_from_peer")
        assert len(scene.receipts) == 1


async def test_mail_of_a_list_in_a_peers_name_is_an_event_for_both_and_an_alarm_for_the_receiver_alone(
    making: Making,
) -> None:
    with capture_logs() as logs:
        async with making.both(alice="") as scene:
            await into_bobs(scene, LIST)
            await scene.until(scene.bob, "qumail_alarm", alarm="unsealed_from_peer")
            async with asyncio.timeout(30):
                while not (said := [each for each in logs if each["event"] == "comes_unsealed_at_peer"]):
                    await asyncio.sleep(0.02)
            assert (said[0]["with_our_sender"], said[0]["with_our_author"]) == (0, 1)
            assert (await scene.alice()).sum("qumail_unsealed_at_peer_total") == 0


@pytest.mark.parametrize(
    ("sender", "author"),
    [("", "MAILER-DAEMON@alice.example"), (LIST, "eve@elsewhere.example"), ("carl@bob.example", BEN)],
)
async def test_bounces_and_mail_in_nobodys_name_count_for_nothing(making: Making, sender: str, author: str) -> None:
    async with making.both(alice="") as scene:
        await into_bobs(scene, sender, author)
        await scene.until(scene.bob, "qumail_mails_total", direction="incoming", outcome="delivered")
        assert (await scene.bob()).sum("qumail_unsealed_from_peer_total") == 0


async def test_what_comes_sealed_counts_for_nothing_and_a_relay_that_does_not_answer_tells_nobody(
    making: Making,
) -> None:
    async with making.both(alice="", bob="\n[canary]\nanswer = false\n") as scene:
        assert (await submit(scene.addresses[0]["outgoing"], mails.plain())).code == 250
        await scene.until(scene.bob, "qumail_mails_total", direction="incoming", outcome="delivered")
        assert (await scene.bob()).sum("qumail_unsealed_from_peer_total") == 0
        await into_bobs(scene, ANN)
        await scene.until(scene.bob, "qumail_alarm", alarm="unsealed_from_peer")
        assert scene.receipts == []


@pytest.mark.promise("Unsealed mail in a peer's name costs a note an hour")
async def test_a_note_in_clear_counts_for_nothing(making: Making) -> None:
    async with making.both(alice="") as scene:
        note = write(CanaryNote("unsealed", bytes(32), 7, 7), BOB, ALICE, "relay.bob.example")
        assert (await submit(scene.addresses[0]["incoming"], note, sender=BOB, recipients=[ALICE])).code == 250
        await scene.until(scene.alice, "qumail_canary_dropped_total", reason="clear text")
        assert (await scene.alice()).sum("qumail_unsealed_at_peer_total") == 0
        assert (await scene.alice()).sum("qumail_unsealed_from_peer_total") == 0, "mail to a canary is no user's"
