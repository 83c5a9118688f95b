"""A captured message is sent again: at once, at the other relay, after a restart, after its time.
Standard: relay/FORMAT.md 9: a recipient gets a mail once, at all relays of a site together.
"""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from relay.errors import OutsideWindow
from relay.process import assembly
from tests.integration.attacks.conftest import LEVELS, Scene, quarantined


def _mailbox(level: str) -> str:
    return f"{'both' if level == 'pqc+aes' else level}@bob.example"


@pytest.mark.promise("A recipient gets a mail once")
async def test_a_recipient_gets_a_mail_once_however_often_and_wherever_it_comes(scene: Scene) -> None:
    for level in LEVELS:  # each has a mailbox of its own
        scene.delivered.clear()
        message = await scene.captured(level)
        for relay in (0, 0, 1, 1, 0):
            reply = await scene.sent(message, to=_mailbox(level), relay=relay)
            assert reply.code == 250
        assert len(scene.delivered) == 1
        assert await quarantined(scene.bob) == []


@pytest.mark.promise("A recipient gets a mail once")
async def test_outer_fields_that_the_attacker_writes_anew_make_no_new_mail_of_it(scene: Scene) -> None:
    """What stands outside is nobody's word; neither a new Message-ID nor a mailbox in other letters counts."""
    for level in LEVELS:  # each has a mailbox of its own
        scene.delivered.clear()
        message = await scene.captured(level)
        assert (await scene.sent(message, to=_mailbox(level))).code == 250
        renamed = message.replace(b"<1@alice.example>", b"<2@alice.example>").replace(b"Ann", b"Eve")
        assert renamed != message
        for to in (_mailbox(level), _mailbox(level).replace("bob.example", "BOB.Example")):
            assert (await scene.sent(renamed, to=to, relay=1)).code == 250
        assert len(scene.delivered) == 1


@pytest.mark.promise("A restored store opens nothing sealed before")
async def test_what_was_sealed_before_the_store_was_restored_opens_no_more(scene: Scene) -> None:
    """Who has waited for it could else have yesterday's mail delivered once more."""
    message = await scene.captured("pqc")
    async with assembly.parts(scene.bob.config, prefetch=False) as parts:
        parts.store.restore_check.trusted_from = time.time() + 60
        opener = replace(parts.originals.opener, restore_check=parts.store.restore_check)
        with pytest.raises(OutsideWindow, match="restored"):
            await opener.open(message, ["pqc@bob.example"])
