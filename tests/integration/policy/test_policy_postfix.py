"""Policies are edited while real Postfix sends a thousand mails through the relay: each by one version, none lost.
Standard: an edit about every 100 ms, one in three broken; what the log says of a mail is what happened to it.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from relay.kme import DevelopmentKMEs
from relay.policy import load_policies
from tests.testlib import mails, postfix
from tests.testlib.mail_site import mail_site
from tests.testlib.postfix import requires_postfix
from tests.testlib.sink import Sink
from tests.testlib.wire import Wire
from tests.unit.policy.test_policy import write

pytestmark = requires_postfix

MAILS = 1000
LEVELS = ("aes", "plaintext", None)
"""What the edits say in turn; None is a broken one."""


class Editor:
    """Edits the policies until it is stopped, and knows which level each version says."""

    def __init__(self, policies: Path, beside: Path) -> None:
        self.policies, self.beside = policies, beside
        self.versions: dict[str, str] = {}
        self.stop = asyncio.Event()

    def text(self, number: int) -> str:
        """The policy of an edit, whose level is noted down by its version."""
        level = LEVELS[number % 3]
        if level is None:
            return f"levels = [\n# {number}\n"
        text = f'levels = ["{level}"]\n# {number}\n'
        set_of_it = load_policies(write(self.beside / str(number), {"bob.example.toml": text}), {})
        self.versions[set_of_it.version] = level
        return text

    async def run(self) -> None:
        number = 0
        while not self.stop.is_set():
            number += 1
            write(self.policies, {".new": self.text(number)})
            (self.policies / ".new").replace(self.policies / "bob.example.toml")
            try:
                async with asyncio.timeout(0.1):
                    await self.stop.wait()
            except TimeoutError:
                continue


async def test_a_thousand_mails_through_postfix_while_policies_are_edited(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    (smtp,) = postfix.free_addresses(1)
    async with Wire(smtp) as inbound, Wire(sink.address) as to_bob:
        site = mail_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], smtp=smtp, inbound=inbound,
            peer_inbound=to_bob, policies={"bob.example.toml": 'levels = ["aes"]\n# 0\n'},
        )  # fmt: skip
        async with site as alice:
            editor = Editor(alice.site.directory / "policies", tmp_path / "beside")
            editor.text(0)
            editing = asyncio.create_task(editor.run())

            async def send(numbers: range) -> None:
                for number in numbers:
                    message = mails.plain(body=f"number {number}.\r\n")
                    reply = await alice.postfix.submit(message, recipients=[f"u{number}@bob.example"])
                    assert reply.code == 250, reply

            await asyncio.gather(*(send(range(first, MAILS, 10)) for first in range(10)))
            await sink.messages(MAILS)
            editor.stop.set()
            await editing
            log = [json.loads(line) for line in alice.relay.log.splitlines() if line.startswith("{")]
    assert sorted(got.recipients for got in sink.got) == sorted((f"u{number}@bob.example",) for number in range(MAILS))
    sent = [entry for entry in log if entry["event"] in ("sealed_and_sent", "sent_in_clear")]
    assert len(sent) == MAILS
    assert all(entry["protection"] == editor.versions[entry["policy_version"]] for entry in sent)
    in_clear = sum(b"number " in got.message for got in sink.got)
    assert in_clear == sum(entry["event"] == "sent_in_clear" for entry in sent)
    assert len({entry["policy_version"] for entry in sent}) > 5
    assert any(entry["event"] == "policies_not_reloaded" for entry in log)
