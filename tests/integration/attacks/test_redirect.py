"""A captured message is sent again by somebody else, to somebody else: Bob's relay is no machine that decrypts.
Standard: relay/FORMAT.md 9: only those whom the sealed envelope names get the mail, from its sender; answers tell nothing.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.attacks.conftest import LEVELS, Scene, quarantined
from tests.testlib import mails

pytestmark = pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
"""Bob has two relays on one store."""

EVE, OUTSIDER = "eve@bob.example", "mallory@evil.example"


def _mailbox(level: str) -> str:
    return f"{'both' if level == 'pqc+aes' else level}@bob.example"


@pytest.mark.promise("Bob's relay decrypts for nobody but those whom Alice's relay named")
async def test_nobody_gets_a_mail_whom_its_sealed_envelope_does_not_name(scene: Scene) -> None:
    for number, level in enumerate(LEVELS, start=1):  # each has a mailbox of its own
        scene.delivered.clear()
        message = await scene.captured(level)
        redirected = await scene.sent(message, to=EVE, sender=OUTSIDER)
        assert not scene.delivered
        named = await scene.sent(message, to=_mailbox(level), sender=OUTSIDER, relay=1)
        async with asyncio.timeout(30):  # the other relay may still be writing down that it has delivered it
            while (again := await scene.sent(message, to=_mailbox(level), sender=OUTSIDER)).code == 451:
                assert len(scene.delivered) == 1
        assert {reply.code for reply in (redirected, named, again)} == {250}
        assert [got.recipients for got in scene.delivered] == [(_mailbox(level),)]
        assert await quarantined(scene.bob) == ["redirected"] * number


@pytest.mark.promise("Bob's relay decrypts for nobody but those whom Alice's relay named")
async def test_the_mail_goes_on_from_the_sealed_sender_and_tells_of_no_success(scene: Scene) -> None:
    """An outsider who asked for a notice of success would be sent subject and header of the original."""
    for level in LEVELS:  # each has a mailbox of its own
        scene.delivered.clear()
        message = await scene.captured(level)
        reply = await scene.sent(message, to=_mailbox(level), sender=OUTSIDER, notify="NOTIFY=SUCCESS,FAILURE")
        assert reply.code == 250
        [got] = scene.delivered
        assert got.sender == "ann@alice.example"
        assert mails.plain() in got.message
        assert "SUCCESS" not in str(got)


@pytest.mark.promise("Answers reveal nothing")
async def test_all_failures_after_the_keys_were_looked_at_are_answered_alike(scene: Scene) -> None:
    """Named or not, tag right or wrong, key used or destroyed: Bcc would be told by any difference."""
    message = await scene.captured("pqc")
    flipped = bytearray(message)
    place = next(each for each in range(len(message) // 2, len(message)) if chr(message[each]).isalnum())
    flipped[place] = ord("A") if flipped[place] != ord("A") else ord("B")
    replies = [
        await scene.sent(message, to="pqc@bob.example"),
        await scene.sent(message, to="pqc@bob.example"),
        await scene.sent(message, to=EVE),
        await scene.sent(bytes(flipped), to="pqc@bob.example"),
        await scene.sent(bytes(flipped), to=EVE),
    ]
    assert {reply.code for reply in replies} == {250}
    assert len(scene.delivered) == 1


@pytest.mark.promise("Mail sealed for one site opens at no other, and not at its sender's")
async def test_a_message_that_comes_back_to_its_sender_is_not_opened_there(scene: Scene) -> None:
    """Reflection: master and slave SAE are not exchanged by who sends it."""
    for level in ("otp", "aes"):
        message = await scene.captured(level)
        reply = await scene.sent(message, to="ann@alice.example", sender="ben@bob.example")
        assert reply.code == 250
        assert not any("alice" in recipient for got in scene.delivered for recipient in got.recipients)
