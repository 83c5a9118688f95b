"""What `postqueue -p` shows is enough to ask why a mail is stuck, whichever way it has come into a real Postfix.
Standard: Postfix's XFORWARD_README (a mail keeps the first queue ID there; of its own users' mail it says none).
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from click.testing import CliRunner

from relay.cli.trace import trace
from relay.kme import DevelopmentKMEs
from tests.testlib.house import House, house
from tests.testlib.postfix import requires_postfix


def told(alice: House, name: str) -> str:
    result = CliRunner().invoke(trace, [name, "-", "--config", str(alice.site.config_file)], input="")
    assert result.exit_code == 0, result.output
    return result.stdout


async def stuck(alice: House, recipient: str) -> str:
    """The queue ID of the mail to them, once it was held and the relay has recorded that."""
    await alice.postfix.deferred(recipient)
    [name] = [name for name, recipients in (await alice.postfix.queued_names()).items() if recipient in recipients]
    return name


async def until_recorded(alice: House, name: str, last: str = "held") -> str:
    async with asyncio.timeout(20):
        while True:
            result = CliRunner().invoke(trace, [name, "-", "--config", str(alice.site.config_file)], input="")
            if f"so far {last}" in result.stdout:
                return result.stdout
            await asyncio.sleep(0.05)


@requires_postfix
async def test_why_a_mail_is_stuck_is_told_by_its_queue_id(tmp_path: Path, kmes: DevelopmentKMEs) -> None:
    async with house("lmtp", tmp_path, kmes) as alice:
        assert (await alice.send("twice", "zoe@nowhere.example")).code == 250
        name = await stuck(alice, "zoe@nowhere.example")
        story = await until_recorded(alice, name)
        last = story.splitlines()[-1]
        assert last.startswith("so far held (outgoing), 1 recipients; NoPolicy: no policy covers")
        assert "delivered" not in story
        [first] = set(re.findall(r"queue_id (\w+)", story))
        assert first != name, "it has passed both filters"
        assert (last in told(alice, first), last in told(alice, "<twice@alice.example>")) == (True, True)

        await alice.sendmail("of-cron", "ben@bob.example")
        async with asyncio.timeout(20):
            while not alice.delivered("of-cron"):
                await asyncio.sleep(0.05)
        [picked_up] = re.findall(r"(\w+): message-id=<of-cron@alice.example>", alice.postfix.log)[:1]
        assert f"queue_id {picked_up}" in await until_recorded(alice, picked_up, "handed on (outgoing), 1 recipients")
