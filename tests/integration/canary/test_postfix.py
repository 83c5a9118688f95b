"""A canary that a real Postfix takes is answered, in each way of deploy/postfix, and no user of it hears of it.
Standard: deploy/WATCHING.md, the canary: an alias has Postfix take the address.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from relay.formats import mime
from relay.kme import DevelopmentKMEs
from relay.process import app
from tests.integration.canary.conftest import ALICE, BOB
from tests.integration.canary.test_forged import canary
from tests.testlib.house import house
from tests.testlib.postfix import requires_postfix
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site
from tests.testlib.submit import submit

ALIAS = {"alias_maps": "inline:{ {qumail-canary = /dev/null} }"}

pytestmark = requires_postfix


@pytest.mark.usefixtures("dishonest")
@pytest.mark.parametrize("way", ["lmtp", "smtp", "incoming-proxy", "milter"])
async def test_postfix_takes_a_canary_and_the_relay_answers_it(
    way: str, tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink
) -> None:
    bob = make_site(tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], outgoing=wire.address)
    async with app.running(bob.config) as addresses:
        question = canary("question", from_=BOB, to=ALICE)
        assert (await submit(addresses["outgoing"], question, sender=BOB, recipients=[ALICE])).code == 250
    async with house(way, tmp_path, kmes, settings=ALIAS) as alice:
        reply = await submit(alice.entry, wire.got[0].message, sender=BOB, recipients=[ALICE])
        assert reply.code == 250
        [receipt] = await alice.bob.messages(1)
        assert (receipt.sender, receipt.recipients) == (ALICE, (BOB,))
        assert mime.is_sealed(receipt.message)
        async with asyncio.timeout(30):
            while await alice.postfix.queue():
                await asyncio.sleep(0.05)
        assert alice.own.got == []
        assert "/dev/null" not in alice.postfix.log, "the relay has taken it, and not the alias"
