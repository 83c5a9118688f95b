"""A canary goes to the peer's relay and comes back, at every level and through every listener, and nobody gets it.
Standard: relay/FORMAT.md, section 11; nothing of it is in a mailbox, a queue or a quarantine.
"""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from relay.formats import mime
from tests.integration.canary.conftest import ALICE, ASKS, BOB, Making, asked_long_ago


@pytest.mark.parametrize("level", ["otp", "aes", "pqc", "rsa"])
async def test_a_canary_comes_back_at_every_level(making: Making, level: str) -> None:
    async with making.both(level) as scene:
        alice = await scene.until(scene.alice, "qumail_canary_returned_total", peer="bob")
        alice = await scene.until(scene.alice, "qumail_canary_sent_total", peer="bob")
        while not (trip := alice.sum("qumail_canary_round_trip_seconds", peer="bob")):
            alice = await scene.alice()
        assert 0 < trip < 30
        assert 0 <= alice.sum("qumail_canary_age_seconds", peer="bob") < 30
        assert alice.sum("qumail_canary_interval_seconds") == 60
        bob = await scene.until(scene.bob, "qumail_canary_answered_total", peer="alice")
        assert bob.sum("qumail_canary_dropped_total") == alice.sum("qumail_canary_dropped_total") == 0
        [question], [receipt] = scene.questions, scene.receipts
        assert (question.sender, receipt.sender) == (ALICE, BOB)
        assert mime.is_sealed(question.message)
        assert mime.is_sealed(receipt.message)
        assert b"canary+json" not in question.message + receipt.message
        for found, peer in ((alice, "bob"), (bob, "alice")):
            assert found.sum("qumail_mails_total", direction="outgoing", listener="relay", outcome="delivered") == 1
            [consumed] = [
                dict(labels) for labels in found.of_name("qumail_mails_total") if ("direction", "incoming") in labels
            ]
            assert (consumed["outcome"], consumed["peer"]) == ("consumed", peer)
            assert consumed["level"].startswith(level)
        await scene.nothing_is_left()


@pytest.mark.parametrize("listener", ["lmtp", "milter"])
async def test_a_canary_comes_back_through_every_listener(making: Making, listener: str) -> None:
    async with making.both(listener=listener) as scene:
        await scene.until(scene.alice, "qumail_canary_returned_total", peer="bob")
        said = "d" if listener == "milter" else "250"
        assert all(each.startswith(said) for wire in scene.wires for each in wire.answers)
        await scene.nothing_is_left()


async def test_the_next_one_goes_when_its_time_has_come_and_comes_back_too(making: Making) -> None:
    async with making.both() as scene:
        await scene.until(scene.alice, "qumail_canary_returned_total", peer="bob")
        for site in scene.sites:
            asked_long_ago(site)
        await scene.until(scene.alice, "qumail_canary_returned_total", 2, peer="bob")
        assert (len(scene.questions), len(scene.receipts)) == (2, 2)


async def test_one_that_does_not_get_through_is_not_tried_again_and_nothing_of_it_stays(making: Making) -> None:
    making.wires[0].on_data = ["451 4.3.0 not now"]
    with capture_logs() as logs:
        async with making.both(alice=ASKS) as scene:
            async with asyncio.timeout(30):
                while not (failed := [each for each in logs if each["event"] == "canary_not_sent"]):
                    await asyncio.sleep(0.02)
            assert failed[0]["peer"] == "bob"
            alice = await scene.alice()
            assert alice.sum("qumail_canary_sent_total") == alice.sum("qumail_held_recipients") == 0
            await scene.nothing_is_left()
            asked_long_ago(scene.sites[0])
            await scene.until(scene.alice, "qumail_canary_returned_total", peer="bob")
